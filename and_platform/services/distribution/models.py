"""The models of a worker: kept loaded between units, the one that was not used for longest let go first."""

from __future__ import annotations

import gc
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar

from and_platform.backends import registry
from and_platform.backends.base import LLM, Captioner, Releasable, Tagger, TextEncoder
from and_platform.errors import ConfigError
from and_platform.schema import Network
from and_platform.services import embed, extract, generate, networks
from and_platform.services.dissect import Options, Tools
from and_platform.services.distribution import stored
from and_platform.services.distribution.settled import Settled
from and_platform.services.provenance import RecipePlan

if TYPE_CHECKING:
    from and_platform.backends.networks.base import LoadedNetwork

T = TypeVar("T")
Loaded = Callable[[str, float], None]
"""Is told what was loaded, and how many seconds that took."""


class Models:
    """A few models by what makes them.

    Parameters
    ----------
    most
        How many are kept.
    loaded
        Is told of each that is made.
    """

    def __init__(self, most: int = 1, loaded: Loaded = lambda _name, _seconds: None) -> None:
        self._most = most
        self._loaded = loaded
        self._kept: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self._lock = RLock()  # threads of one worker share them

    def get(self, key: tuple[str, ...], make: Callable[[], Any]) -> Any:
        """The model of a key, made where it is not kept; another one goes first where there is no room."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            while len(self._kept) >= self._most:
                self._let_go(self._kept.popitem(last=False)[1])
            began = time.monotonic()
            self._kept[key] = make()
            self._loaded(":".join(key[:2]), time.monotonic() - began)
            return self._kept[key]

    def clear(self) -> None:
        """Let all of them go."""
        with self._lock:
            while self._kept:
                self._let_go(self._kept.popitem(last=False)[1])

    @staticmethod
    def _let_go(model: Any) -> None:
        if isinstance(model, Releasable):
            model.release()
        del model
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def network(self, network: Network) -> LoadedNetwork:
        """The module of a stored network."""
        found: LoadedNetwork = self.get(("network", network.name, network.revision), lambda: networks.load(network))
        return found

    def captioner(self, options: Options) -> Captioner:
        """The audio language model of a dissection."""
        given = dict(options.captioner_options)
        found: Captioner = self.get(
            ("captioner", options.captioner, repr(sorted(given.items()))),
            lambda: registry.create("captioner", options.captioner, **given),
        )
        return found

    def tools(self, options: Options) -> Tools:
        """The encoders, the LLM and the tagger of a dissection, as their files are or were when they were loaded."""
        return _Kept(options, self)

    def tools_of(self, known: Settled) -> Tools:
        """Those that a run was planned with.

        Raises
        ------
        ConfigError
            When it is used: one of them is another by now, or on this machine.
        """
        return _Planned(known, self)

    def as_planned(self, name: str, get: Callable[[], T], plan: Callable[[T], RecipePlan], planned: RecipePlan) -> T:
        """What `get` gives, if `plan` makes of it the recipe that was planned.

        One that is kept from before its files changed is loaded anew.

        Raises
        ------
        ConfigError
            It is another.
        """
        found = get()
        if plan(found).sha256 != planned.sha256:
            self.clear()
            found = get()
            if plan(found).sha256 != planned.sha256:
                raise ConfigError(
                    f"{name} is not what the run was planned with: what it consists of has changed since, or is not the same on "
                    "this machine; put it right and try again (andp runs retry), or cancel this run and begin again"
                )
        return found


class _Kept(Tools):
    """Tools that share what a worker keeps."""

    def __init__(self, options: Options, models: Models) -> None:
        super().__init__(options)
        self._models = models

    def _get(self, role: str, spec: str, **keywords: Any) -> Any:
        key = (role, spec, repr(sorted(keywords.items())))
        return self._models.get(key, lambda: registry.create(role, spec, **keywords))


class _Planned(Tools):
    """Tools that are those that a run was planned with."""

    def __init__(self, known: Settled, models: Models) -> None:
        super().__init__(known.options)
        self._known, self._models = known, models
        self._now = models.tools(known.options)

    @property
    def sentence_encoder(self) -> TextEncoder:
        name = f"the sentence encoder '{self._options.sentence_encoder}'"
        return self._models.as_planned(
            name, lambda: self._now.sentence_encoder, embed.plan, self._known.sentence_encoder
        )

    def scoring_encoder(self, method: str) -> TextEncoder:
        planned = stored.parent_of(self._known.plan.scores[method].recipe, "encode")
        name = f"the encoder '{planned.backend}' of the method {method}"
        return self._models.as_planned(name, lambda: self._now.scoring_encoder(method), embed.plan, planned)

    @property
    def llm(self) -> LLM:
        planned = self._known.llm
        assert planned is not None
        return self._models.as_planned(f"the LLM '{self._options.llm}'", lambda: self._now.llm, generate.plan, planned)

    @property
    def tagger(self) -> Tagger:
        name = f"the tagger '{self._options.tagger}'"
        return self._models.as_planned(name, lambda: self._now.tagger, extract.plan_tags, self._known.plan.tag)
