"""Find a GPU: among the shipped ones by its name, or in a file of the user."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from helixsim.errors import ScenarioError
from helixsim.hardware.gpu import Gpu
from helixsim.hardware.gpu_spec import CatalogueFile, CatalogueGpu, GpuFile
from helixsim.yaml_files import did_you_mean, read_yaml, validate

CATALOGUE = Path(__file__).parent / "data" / "gpus.yaml"


def shipped_gpus() -> tuple[Gpu, ...]:
    """All GPUs of the catalogue, in its order: by vendor and generation."""
    return tuple(entry.to_gpu() for entry in _catalogue().gpus)


def price_year() -> int:
    """Year of the catalogue's prices."""
    return _catalogue().price_year


def load_gpu(name_or_path: str | Path, base_dir: str | Path = ".", own: Iterable[Gpu] = ()) -> Gpu:
    """Load a GPU.

    Parameters
    ----------
    name_or_path
        The name of a GPU (upper or lower case; hyphens and spaces do not count), another name of
        it, such as the driver's, or the path of a file (it ends in ``.yaml`` or ``.yml``).
    base_dir
        Folder to which a relative path refers.
    own
        GPUs of the user; they come before the catalogue's.

    Raises
    ------
    ScenarioError
        If there is no such GPU, if the name is that of several variants, or if the file has errors.
    """
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        file = Path(base_dir) / name_or_path
        return validate(GpuFile, read_yaml(file), file).to_gpu()
    wanted = gpu_key(str(name_or_path))
    for gpu in own:
        if gpu_key(gpu.name) == wanted:
            return gpu
    for entry in _catalogue().gpus:
        if wanted in map(gpu_key, (entry.name, entry.title, *entry.aliases)):
            return entry.to_gpu()
    return _variant_of(str(name_or_path)).to_gpu()


def _variant_of(name: str) -> CatalogueGpu:
    """The only GPU with all words of a name, as in `A100 80GB PCIe`.

    One word has letters and digits: `ada`, or `16`, names no GPU.
    """
    words = _words(name)
    named = any(re.search("[a-z]", word) and re.search("[0-9]", word) for word in words)
    found = [entry for entry in _catalogue().gpus if named and words <= _words(entry.name)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(entry.name for entry in found)
        raise ScenarioError(f"'{name}' is the name of several GPUs: {names}; say which")
    hint = did_you_mean(name, [entry.name for entry in _catalogue().gpus])
    raise ScenarioError(
        f"the catalogue has no GPU '{name}'; {hint} ('helixsim gpus' lists all; for your own GPU, "
        "give the path of a file, ending in .yaml)"
    )


@cache
def _catalogue() -> CatalogueFile:
    return validate(CatalogueFile, read_yaml(CATALOGUE), CATALOGUE)


def gpu_key(name: str) -> str:
    """A name without what writers differ in."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _words(name: str) -> set[str]:
    """The words of a name, without the vendor; `80GB` is the word 80, `SXM4` the word sxm."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    plain = (re.sub(r"^(\d+)gb$|^(sxm)\d$", r"\1\2", word) for word in words)
    return set(plain) - {"nvidia", "amd", "intel", "geforce", "tesla", "instinct"}
