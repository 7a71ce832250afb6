"""Find and load LLMs and machine types: shipped ones, and files of users."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from helixsim.errors import InputError, ScenarioError
from helixsim.profiles.llm_spec import LLMSpec
from helixsim.profiles.machine import LLM, MachineType
from helixsim.profiles.spec import MachineSpec
from helixsim.yaml_files import FileModel, did_you_mean, read_yaml, validate

DATA = Path(__file__).parent / "data"

Model = TypeVar("Model", bound=FileModel)


def shipped_llms() -> tuple[str, ...]:
    """Names of the LLMs that ship with helixsim, sorted."""
    return shipped_names(DATA / "llms")


def shipped_machine_types() -> tuple[str, ...]:
    """Names of the machine types that ship with helixsim, sorted."""
    return shipped_names(DATA / "machines")


def load_llm(name_or_path: str | Path, base_dir: str | Path = ".") -> LLM:
    """Load an LLM.

    Parameters
    ----------
    name_or_path
        The name of a shipped LLM, or the path of a file (it ends in ``.yaml`` or ``.yml``).
    base_dir
        Folder to which a relative path refers.

    Raises
    ------
    ScenarioError
        If there is no such LLM, or its file has errors.
    """
    return load_named(LLMSpec, DATA / "llms", "LLM", name_or_path, base_dir)[0].to_llm()


def load_machine_type(
    name_or_path: str | Path, base_dir: str | Path = ".", llms: Iterable[LLM] = ()
) -> MachineType:
    """Load a machine type.

    Parameters
    ----------
    name_or_path
        The name of a shipped machine type, or the path of a file (it ends in ``.yaml`` or
        ``.yml``).
    base_dir
        Folder to which a relative path refers.
    llms
        Known LLMs in addition to the shipped ones. Only a profile that derives its KV cache
        from the machine's memory, or its times from operators, needs its LLM; if that is
        unknown, the profile is left out.

    Raises
    ------
    ScenarioError
        If there is no such machine type, or its file has errors.
    """
    folder = DATA / "machines"
    spec, file = load_named(MachineSpec, folder, "machine type", name_or_path, base_dir)
    known = {llm.name: llm for llm in llms}
    for name, serving in spec.llms.items():
        if serving.needs_llm and name not in known and name in shipped_llms():
            known[name] = load_llm(name)
    try:
        return spec.to_machine_type(known)
    except InputError as error:
        raise ScenarioError(error.message, file=file, where=error.where) from error


def shipped_names(folder: Path) -> tuple[str, ...]:
    """Names of the files in a folder of shipped data, sorted."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def load_named(
    model_type: type[Model], folder: Path, noun: str, name_or_path: str | Path, base_dir: str | Path
) -> tuple[Model, Path]:
    """Load a shipped file by its name, or a file by its path.

    Parameters
    ----------
    model_type
        Model of the file.
    folder
        Folder of the shipped files.
    noun
        Kind of the file, for messages.
    name_or_path
        A name, or a path that ends in ``.yaml`` or ``.yml``.
    base_dir
        Folder to which a relative path refers.

    Raises
    ------
    ScenarioError
        If there is no such name, or the file has errors.
    """
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        file = Path(base_dir) / name_or_path
    else:
        names = shipped_names(folder)
        if str(name_or_path) not in names:
            raise ScenarioError(
                f"no {noun} '{name_or_path}' ships with helixsim; "
                f"{did_you_mean(str(name_or_path), names)} "
                "(for your own file, give its path, ending in .yaml)"
            )
        file = folder / f"{name_or_path}.yaml"
    return validate(model_type, read_yaml(file), file), file
