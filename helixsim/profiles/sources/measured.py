"""Profiles from kernels that others measured."""

from __future__ import annotations

from helixsim.errors import InputError
from helixsim.hardware.gpu import GpuMachine
from helixsim.llms.architecture import Architecture, LayerKind
from helixsim.profiles.operator_csv import DEFAULT_SKEW
from helixsim.profiles.operator_documents import operators_document, tables_of_document
from helixsim.profiles.operators import ALL_REDUCES_PER_LAYER, AllReduce, OperatorTables
from helixsim.profiles.sources.cache import ProfileCache
from helixsim.profiles.sources.hub_config import dense_config, layer_config
from helixsim.profiles.sources.kernel_library import (
    INSTALL_HINT,
    PACKAGE,
    SERVING_ENGINE,
    Aiconfigurator,
    KernelLibrary,
    KernelQuery,
    LibraryNames,
    library_names,
)
from helixsim.profiles.sources.kernel_tables import (
    KernelOperators,
    fitted_all_reduce,
    layer_tables,
    once_curves,
)
from helixsim.profiles.sources.source import STEP_GAP_S, SourcedTables, UnknownPairError

OTHER_SOURCE = "use the roofline instead (--source roofline)"


class MeasuredSource:
    """Asks ``aiconfigurator-core`` for the times of kernels; a :class:`.ProfileSource`.

    The same version of the package gives the same figures. All-reduces are a line, by latency and
    bandwidth, and `tensor_parallel` is the number of GPUs.

    Parameters
    ----------
    cache
        Keeps tables between runs; None for no cache.
    library
        Where the times come from.
    """

    def __init__(
        self, cache: ProfileCache | None = None, library: KernelLibrary | None = None
    ) -> None:
        self._cache = cache
        self._library = library or Aiconfigurator()

    def __call__(self, architecture: Architecture, machine: GpuMachine) -> SourcedTables:
        """The times.

        Raises
        ------
        UnknownPairError
            If the package is not installed, or has no times of the pair.
        """
        version = self._library.version()
        if version is None:
            reason = f"measured times need the package {PACKAGE} ({INSTALL_HINT})"
            raise UnknownPairError(reason, OTHER_SOURCE)
        system = library_names().system_of(machine.gpu.name)
        if system is None:
            known = ", ".join(sorted(set(library_names().systems.values())))
            reason = f"{PACKAGE} {version} has no measured times of {machine.gpu.name}"
            raise UnknownPairError(f"{reason}, only of {known}", OTHER_SOURCE)
        if self._cache is None:
            return self._asked(architecture, machine, system, version)
        key = f"{PACKAGE} {version} {architecture!r} {machine!r}"
        found = self._cache.load(key)
        if found is None:
            found = self._asked(architecture, machine, system, version)
            self._cache.store(key, found)
        return found

    def _asked(
        self, architecture: Architecture, machine: GpuMachine, system: str, version: str
    ) -> SourcedTables:
        try:
            tables = _Question(self._library, architecture, machine, system).tables()
        except InputError as error:
            raise UnknownPairError(
                f"{PACKAGE} {version} has no measured times of {architecture.name} on "
                f"{machine.name}: {error.message}",
                OTHER_SOURCE,
            ) from error
        engine = self._library.engine_version(system)
        return SourcedTables(
            # As in a machine file, so that a file gives the same results.
            tables_of_document(operators_document(tables)),
            "measured",
            f"kernel times of {PACKAGE} {version} ({system}, {SERVING_ENGINE}"
            + (f" {engine})" if engine else ")"),
        )


class _Question:
    """One LLM on one machine: which operators to ask for."""

    def __init__(
        self, library: KernelLibrary, architecture: Architecture, machine: GpuMachine, system: str
    ) -> None:
        self._library = library
        self._architecture = architecture
        self._machine = machine
        self._system = system
        self._names: LibraryNames = library_names()

    def tables(self) -> OperatorTables:
        """The tables of all kinds of layers."""
        architecture, num_gpus = self._architecture, self._machine.num_gpus
        pairs = [self._operators(kind) for kind in architecture.kinds]
        bytes_per_token = architecture.activation_bytes_per_token
        all_reduce: AllReduce | None = None
        if num_gpus > 1:
            blocks = [block for _, block in pairs]
            all_reduce = fitted_all_reduce(blocks, bytes_per_token, num_gpus)

        def exchanged_s(num_tokens: int) -> float:
            if all_reduce is None:
                return 0.0
            return ALL_REDUCES_PER_LAYER * all_reduce(num_tokens * bytes_per_token, num_gpus)

        kinds = tuple(
            layer_tables(
                attention,
                block,
                window=kind.attention.window is not None,
                all_reduce=exchanged_s,
                experts=_experts_of(kind),
            )
            for kind, (attention, block) in zip(architecture.kinds, pairs, strict=True)
        )
        embedding, final_norm, head = once_curves(pairs[0][0])
        return OperatorTables(
            kinds=kinds,
            kind_of_layer=architecture.kind_of_layer if len(kinds) > 1 else (),
            embedding=embedding,
            final_norm=final_norm,
            head=head,
            decode_skew=DEFAULT_SKEW,
            tensor_parallel=num_gpus,
            all_reduce=all_reduce,
            step_gap_s=STEP_GAP_S,
        )

    def _operators(self, kind: LayerKind) -> tuple[KernelOperators, KernelOperators]:
        """Operators with the attention of a kind, and with its feed-forward block."""
        if kind.attention.latent_dim and kind.experts is None:
            beside = [other for other in self._architecture.kinds if other.experts is not None]
            if not beside:
                raise InputError("latent attention is measured in LLMs with experts only")
            return self._compiled(beside[0]), self._compiled(kind, dense=True)
        both = self._compiled(kind)
        return both, both

    def _compiled(self, kind: LayerKind, *, dense: bool = False) -> KernelOperators:
        """Operators of a kind, in the first number format that was measured."""
        config = (dense_config if dense else layer_config)(self._architecture, kind)
        failure: InputError | None = None
        for matrices in self._matrix_modes(kind):
            for experts in self._expert_modes(kind):
                query = KernelQuery(
                    config=config,
                    system=self._system,
                    num_gpus=self._machine.num_gpus,
                    spread_experts=self._machine.spread_experts if kind.experts else None,
                    matrices=matrices,
                    experts=experts,
                    kv=self._mode("kv", self._architecture.kv.name)[0],
                )
                try:
                    return KernelOperators(self._library.compile(query))
                except InputError as error:
                    failure = failure or error
        assert failure is not None
        raise failure

    def _matrix_modes(self, kind: LayerKind) -> tuple[str, ...]:
        form = max(kind.matrices, key=lambda matrix: matrix.values).number_format
        name = (form or self._architecture.weights).name
        use = "matrices"
        if kind.attention.latent_dim and name in self._names.formats["matrices_in_blocks"]:
            use = "matrices_in_blocks"
        return self._mode(use, name)

    def _expert_modes(self, kind: LayerKind) -> tuple[str | None, ...]:
        if kind.experts is None:
            return (None,)
        form = kind.experts.matrices[0].number_format
        return self._mode("experts", (form or self._architecture.weights).name)

    def _mode(self, use: str, name: str) -> tuple[str, ...]:
        found = self._names.modes(use, name)
        if not found:
            raise InputError(f"{use.partition('_')[0]} in {name} are not measured")
        return found


def _experts_of(kind: LayerKind) -> tuple[int, int] | None:
    if kind.experts is None:
        return None
    return kind.experts.num_experts, kind.experts.experts_per_token
