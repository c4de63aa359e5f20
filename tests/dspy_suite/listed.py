"""Which of DSPy's test files use a module, and which of their tests don't apply over a pool, and why.

docs/explanation/at-home-in-dspy.md shows the same list.
"""

from __future__ import annotations

FILES = (
    "predict/test_parallel.py",
    "utils/test_parallelizer.py",
    "evaluate/test_evaluate.py",
    "primitives/test_module.py",
    "primitives/test_base_module.py",
    "utils/test_saving.py",
    "predict/test_best_of_n.py",
    "predict/test_refine.py",
    "utils/test_usage_tracker.py",
    "teleprompt/test_bootstrap.py",
    "teleprompt/test_bootstrap_trace.py",
    "teleprompt/test_bootstrap_finetune.py",
)

_COUNTS = "it counts the module's calls in a variable of the test's own process; they were made in a worker's"
_TEXT = "it compares an error's whole text; ours begins with the pool, the worker and the program"
_CALLBACKS = "callbacks see what runs in their own process: the call of the outermost module, not those in the worker"

DOES_NOT_APPLY: dict[str, frozenset[str]] = {
    _COUNTS: frozenset({"test_refine_forward_success_first_attempt", "test_refine_module_custom_fail_count"}),
    _TEXT: frozenset({"test_batch_with_failed_examples"}),
    _CALLBACKS: frozenset({"test_parallel_children_inherit_parent_callback_call_id"}),
}
"""Reason -> names of tests."""
