"""How much the planner tries: every limit, share and temperature of its searches in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SearchBudget:
    """The effort that planning methods spend, counted in steps so that a seed repeats its plan.

    Budgets change how good a placement is and how long the search takes, never whether the
    placement is valid. The values suit clusters of 10 to 1,000 nodes.

    Attributes
    ----------
    chain_precision
        Relative width at which the bisection over the flow of a chain ends: well below the 2 %
        that simulations can tell apart.
    chain_floor
        Share of the upper bound below which no chain is searched for, so that the bisection ends
        on clusters that no chain fits.
    chain_solver_s
        Seconds for one integer program over patterns. It takes milliseconds; the limit only stops
        a degenerate one.
    block_units
        Parts of the target that throughputs are rounded down to when blocks are priced: the
        error is at most 1/4000 per node, and time and memory grow in proportion.
    block_rounds
        Rounds of column generation: prices move little after the first rounds, and a missing
        block only makes the chain worse, not invalid.
    block_solver_nodes
        Branch-and-bound nodes of the program that chooses blocks; a count and no time, so that
        results repeat.
    longest_block
        Layers of a block. Pricing takes time in proportion to its square, and longer parts are
        several blocks after one another.
    block_precision
        Relative width at which the bisection over the flow of a chain of blocks ends, of the
        order of the rounding to `block_units`.
    region_longest_block
        The same as `longest_block` for a region: shorter, as every region is priced anew at every
        target.
    region_precision
        The same as `block_precision` for one chain over all regions; coarser, as links between
        regions limit the flow more than rounding does.
    region_floor
        Share of the upper bound at which that bisection starts: a chain with less flow loses
        against separate chains per region.
    region_group_nodes
        Most nodes of a group of merged regions: more take too long to anneal.
    region_ample
        A group that could hold the LLM this many times is not merged further: it has room to
        combine its nodes freely.
    even_longest_stage
        Layers of an even stage: the throughput of nodes falls with the layers that they hold, so
        large clusters do best with short stages.
    even_swaps
        Most swaps of nodes between even stages; each one raises the slowest stage, so few are
        needed and the count only bounds the time.
    anneal_largest_cluster
        Most nodes of a cluster with binding links that is annealed as a whole; larger clusters
        are planned region by region, since steps and their cost grow with the nodes.
    anneal_rounds
        Rounds of bisection over the target. Each one tries harder, and after the last one a
        remaining gap is unlikely to close.
    anneal_iterations
        Moves of one annealing in the first round; round n has n times as many.
    anneal_precision
        Relative width at which the first bisection ends; round n ends at 1/n of it, because a
        failure says little as long as few moves are spent on it.
    anneal_descent
        Least ratio of one target to the last failed one: a smaller target would be reached easily
        and teach little.
    anneal_hot, anneal_cold
        Temperatures at the start and the end, in units of the cost: a share of the target's flow
        that is missing. Losses of a few percent are accepted at first, of one percent at last.
    anneal_layer_cost, anneal_stage_cost, anneal_empty_cost
        Cost of a missing layer, of a stage too many, and of a stage without layers: each several
        times the hot temperature, so that the search seldom stays in such states.
    anneal_close
        Cost up to which a state is worth an exact maximum flow, which takes longer than a move.
    anneal_remembered
        Stages and pairs of stages whose costs are kept; bounds the memory.
    anneal_check_every
        Moves between two looks at the clock: milliseconds apart.
    bound_units
        Parts of the target that throughputs are rounded up to in the bound: it weakens the bound
        by at most 1/10,000 per slot.
    bound_precision
        Relative width at which the bisection over the bound ends, the order of that rounding.
    bound_floor
        Share of the first bound below which no better one is searched for, so that the bisection
        ends where no flow is possible.
    bound_rounds
        Rounds of the linear program over covers; when they are used up, the target counts as
        possible, which only weakens the bound.
    bound_classes
        Most classes of nodes; further ones are merged into the fastest of their kind, which only
        weakens the bound. Slots, and with them the time of a round, grow with the classes.
    start_share
        Share of the time limit for the starts of a simulated search; simulations need the rest.
    start_anneal_rounds
        The same as `anneal_rounds` for a start, which need not be the greatest flow.
    start_up_s
        Seconds left below which a search by simulation starts no processes.
    start_stage_factors
        Limits on stages that starts are also searched under, relative to the fewest possible:
        short routes have low latencies, long ones a high flow.
    starts
        Starts with the best estimates that are simulated, besides the scenario's own placement.
    start_promising
        Share of the best estimate below which a start is not simulated.
    templates, templates_work, templates_kept
        Placements that are drawn by templates, at most; their number times the nodes of the
        cluster; and the best ones of different structure that annealings start from.
    templates_climbed, templates_scores
        Drawn templates that are improved by single changes, at most, and the scores computed for
        that, times the nodes of the cluster.
    templates_orders
        Orders of the blocks that are tried for each of them.
    proposal_parents
        Candidates that the annealings of one round start from.
    proposal_steps, proposal_least_steps
        Most and fewest steps of one annealing of the surrogate.
    proposal_work
        Steps of one annealing times nodes of the cluster: a step takes time in proportion to the
        nodes.
    proposal_node_steps
        Most steps of one annealing for each node of the cluster: few nodes have few placements.
    proposal_share
        Share of the remaining time that the annealings of one round take at most.
    proposal_hot, proposal_cold
        Relative loss in score that is accepted at the start and the end: below the differences of
        a few percent between good placements.
    proposal_heats
        Factors of these temperatures, by turns: clusters differ in which finds the most.
    proposal_heat_nodes
        Nodes of a cluster below which temperatures are higher, in inverse proportion to its nodes:
        one node of few makes a greater difference.
    proposal_lenience
        A placement's flow may be split more evenly than that of the current one by this factor;
        without it, the exact flow would be computed for most placements.
    proposal_least_share
        Least random share: losses beyond -log of it (4.6) times the temperature are never
        accepted, so that poor neighbours are rejected by one quick test.
    proposal_remembered
        Placements whose scores are kept; bounds the memory.
    proposal_archive
        Placements of different structure that one annealing proposes.
    proposal_check_every
        Steps between two looks at the clock: milliseconds apart.
    proposal_tighter
        Decode latencies, relative to the best candidate's, that some proposals must keep, so that
        candidates cover the whole front.
    batch
        Simulations of a round.
    neighbours
        Neighbours of the best candidate that are drawn where annealings propose too few.
    neighbours_error
        Error of the surrogate, relative to its corrected estimates, from which on as many
        neighbours are simulated as proposals.
    draw_tries
        Attempts to draw a valid neighbour before the placement itself is returned.
    draw_changes
        Numbers of changes of a neighbour, each as often as it is drawn: mostly one, and up to
        three to leave local optima.
    patience
        Rounds without gain before the search ends.
    patience_error
        Error of the surrogate above which there are more of them, in proportion.
    least_gain
        Relative gain in score that counts as one; less is within the noise of a run.
    finalists
        Best candidates that may get further seeds, and most rounds of these.
    confirmed
        Candidates for whose further seeds time is kept at the end of a search with a time limit.
    final_front
        Candidates of the front that are run with all seeds.
    tiles_from_nodes
        Nodes of a cluster from which it is cut into tiles: an estimate of a placement takes time in
        proportion to its nodes, and there are more neighbours to try.
    tile_sizes
        Nodes of a tile that cuts aim at; a search does well with 10 to 30.
    tile_share_room
        Least share of the cluster's speed that a tile has, over the least share of the flow for
        which nodes get requests (``scheduler.min_flow_share``): shares are estimates.
    tile_cuts
        Cuts of a site, the best by estimate, whose tiles are planned by simulation.
    tile_estimate_share, tile_search_share
        Shares of the time that is left for estimates of all tiles, and then for searches of the
        tiles of the best cuts. Simulations of the whole need the rest.
    tile_steps, tile_heats
        Steps of an annealing of a tile, and the factors of temperatures: one annealing each.
    tile_starts
        Placements of a tile, the best by estimate, that its search starts from.
    tile_rounds
        Rounds of the search of a tile, relative to the rounds of the search's effort.
    tile_annealings
        Annealings in each round of a tile.
    """

    chain_precision: float = 1e-4
    chain_floor: float = 1e-4
    chain_solver_s: float = 5.0
    block_units: int = 4000
    block_rounds: int = 25
    block_solver_nodes: int = 400
    longest_block: int = 36
    block_precision: float = 2e-4
    region_longest_block: int = 24
    region_precision: float = 2e-3
    region_floor: float = 1 / 8
    region_group_nodes: int = 50
    region_ample: float = 2.5
    even_longest_stage: int = 12
    even_swaps: int = 4000
    anneal_largest_cluster: int = 64
    anneal_rounds: int = 12
    anneal_iterations: int = 30_000
    anneal_precision: float = 0.02
    anneal_descent: float = 0.7
    anneal_hot: float = 0.06
    anneal_cold: float = 0.01
    anneal_layer_cost: float = 0.25
    anneal_stage_cost: float = 0.25
    anneal_empty_cost: float = 0.3
    anneal_close: float = 0.02
    anneal_remembered: int = 300_000
    anneal_check_every: int = 64
    bound_units: int = 10_000
    bound_precision: float = 1e-4
    bound_floor: float = 1e-6
    bound_rounds: int = 200
    bound_classes: int = 24
    start_share: float = 0.15
    start_anneal_rounds: int = 1
    start_up_s: float = 5.0
    start_stage_factors: tuple[float, ...] = (1.2, 1.45, 1.75)
    starts: int = 3
    start_promising: float = 0.9
    templates: int = 1500
    templates_work: int = 150_000
    templates_climbed: int = 40
    templates_scores: int = 400_000
    templates_orders: int = 24
    templates_kept: int = 12
    proposal_parents: int = 4
    proposal_steps: int = 8000
    proposal_least_steps: int = 100
    proposal_work: int = 160_000
    proposal_node_steps: int = 500
    proposal_share: float = 0.12
    proposal_hot: float = 0.008
    proposal_cold: float = 0.0005
    proposal_heats: tuple[float, ...] = (1.0, 3.0, 10.0)
    proposal_heat_nodes: int = 16
    proposal_lenience: float = 1.08
    proposal_least_share: float = 0.01
    proposal_remembered: int = 200_000
    proposal_archive: int = 8
    proposal_check_every: int = 32
    proposal_tighter: tuple[float, ...] = (0.85, 0.7, 0.55)
    batch: int = 4
    neighbours: int = 48
    neighbours_error: float = 0.2
    draw_tries: int = 60
    draw_changes: tuple[int, ...] = (1, 1, 1, 2, 2, 3)
    patience: int = 6
    patience_error: float = 0.05
    least_gain: float = 0.001
    finalists: int = 4
    confirmed: int = 2
    final_front: int = 6
    tiles_from_nodes: int = 64
    tile_sizes: tuple[int, ...] = (10, 14, 20, 30)
    tile_share_room: float = 1.2
    tile_cuts: int = 2
    tile_estimate_share: float = 0.2
    tile_search_share: float = 0.5
    tile_steps: int = 1500
    tile_heats: tuple[float, ...] = (1.0, 3.0)
    tile_starts: int = 3
    tile_rounds: float = 0.25
    tile_annealings: int = 4


DEFAULT_BUDGET = SearchBudget()
"""The budget of ``helixsim plan``, and of functions that are called without a search."""
