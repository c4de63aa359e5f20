"""What a pool makes of each LM that it meets: its keys are masked from then on, and a missing one is told.

A warning is never an error: a module of `preload=` may set the key in the worker, and then nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dspool.options import PoolOptions
from dspool.protocol.lm_keys import missing_key
from dspool.protocol.messages import LMSpec
from dspool.protocol.secrets import Secrets
from dspool.supervisor.launch import worker_environment

MAX_SEEN = 1024
"""LMs that are remembered; from then on no warning is given of new ones. There may be one for each of many callers."""


class LMKeys:
    """Looks at each LM once.

    Args:
        options: the pool's; its workers' environments are made of them.
        publish: takes an event and its fields.
        secrets: learns the LMs' keys.
    """

    def __init__(
        self, options: PoolOptions, publish: Callable[[str, Mapping[str, Any]], None], secrets: Secrets
    ) -> None:
        self.seen: set[str] = set()
        """Digests of LMs that need no further look: their keys are masked for good."""
        self._options = options
        self._publish = publish
        self._secrets = secrets

    def look(self, spec: LMSpec, *, everywhere: bool = False) -> None:
        """Mask an LM's keys, and publish lm.key_missing if it has none; once for each LM. From any thread.

        Args:
            spec: the LM.
            everywhere: it needs one in every group's workers, as the pool's own LM does. Else one group that has it is
                enough: a call may be meant for that.
        """
        if spec.digest in self.seen:
            return
        if len(self.seen) >= MAX_SEEN:
            self._secrets.add_lm(spec, passing=True)
            return
        self.seen.add(spec.digest)
        self._secrets.add_lm(spec)
        groups, common = self._options.groups, self._options.env
        found = {group.name: missing_key(spec, worker_environment(common, group.env)) for group in groups}
        without = {name: text for name, text in found.items() if text is not None}
        if not without or (len(without) < len(groups) and not everywhere):
            return
        detail = next(iter(without.values()))
        if len(without) < len(groups):
            detail += f". That is so in the worker groups {', '.join(without)}"
        self._publish("lm.key_missing", {"model": spec.model[:200], "detail": detail})
