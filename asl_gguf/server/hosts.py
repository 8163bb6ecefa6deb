"""K/V of all tokens of the last prompts in host memory (`--asl-full-kv`): slots that begin a prompt take turns with them."""

from __future__ import annotations

from collections.abc import Sequence

from ..cache.host_kv import HostKV
from ..engine.place import SharedContext
from ..engine.sequence import Sequence as EngineSequence
from ..errors import OptionError

_MEASURED = 64
"""tokens of the session that says what rows look like"""


class Hosts:
    """As many as there are slots. Which slot a prompt finds is the server's choice, so none keeps its own.

    Args:
        hosts: nothing is in them yet.
    """

    def __init__(self, hosts: Sequence[HostKV]) -> None:
        self._hosts = list(hosts)  # the least recently used first
        self._holders: dict[HostKV, EngineSequence] = {}
        self._adapters: dict[HostKV, int] = {}

    @classmethod
    def of(cls, full_kv: bool | str, place: SharedContext, n_slots: int) -> Hosts:
        """What `--asl-full-kv` asks for; none where it is off.

        Args:
            place: to open a session in.

        Raises:
            OptionError: the model's layers hold more than K/V rows, or its rows cannot be packed like that.
        """
        if not full_kv:
            return cls([])
        try:
            session = place.open(_MEASURED)
            made = [HostKV.of(full_kv, session) for _ in range(n_slots)]
        except OptionError as err:
            said = str(err).replace("asl_full_kv=True", "--asl-full-kv on").replace("asl_full_kv:", "--asl-full-kv:")
            raise OptionError(said) from err
        finally:
            place.leave()
        return cls([host for host in made if host is not None])

    def take(self, sequence: EngineSequence, tokens: Sequence[int], adapters: int = 0) -> HostKV | None:
        """For a prompt that is about to be planned: what begins most like it, else what was unused for longest.

        Nobody else runs with it. Who held it goes on from the cells alone.

        Args:
            adapters: tells apart the LoRA adapters that the prompt runs with. K/V of others are forgotten.
        """
        free = [host for host in self._hosts if not self._is_busy(host, sequence)]
        if not free:
            return None
        best = max(free, key=lambda host: host.n_common(tokens) if self._adapters.get(host, 0) == adapters else 0)
        if self._adapters.get(best, 0) != adapters:
            best.clear()
        self._adapters[best] = adapters
        holder = self._holders.get(best)
        if holder is not None:
            holder.host = None
        self._hosts.remove(best)
        self._hosts.append(best)
        self._holders = {host: other for host, other in self._holders.items() if other is not sequence}
        self._holders[best] = sequence
        return best

    def _is_busy(self, host: HostKV, sequence: EngineSequence) -> bool:
        holder = self._holders.get(host)
        return holder is not None and holder is not sequence and holder.runs
