"""Faults that the suite must catch: each one edit of one place in the core or a part, and where its test is looked for.

What is planted is what people get wrong: a sign, an index, another time, memory lost, a key shared, a forward not restored.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """An edit of `file`, in which `good` stands once; `tests` are asked with pytest's words."""

    kind: str
    what: str
    file: str
    good: str
    bad: str
    tests: str


CONTRACTS = "tests/contracts"
HEUN = f"{CONTRACTS} -k heun"
CFG = f"{CONTRACTS} -k guide/cfg"
CACHE = f"{CONTRACTS} -k network/deepcache"

FAULTS = (
    # ------------------------------------------------------------------ signs and weights
    Fault(
        "sign",
        "the noise of a step leaves the variance too large",
        "process/affine.py",
        "k_x = torch.where(end, zero, c * (1 - eta**2 * fresh)",
        "k_x = torch.where(end, zero, c * (1 + eta**2 * fresh)",
        f"{CONTRACTS}/test_contract_03_law.py -k flow",
    ),
    Fault(
        "sign",
        "v is read with the wrong sign",
        "process/affine.py",
        "return a / c, -a * a / c - c, -a * b / c",
        "return a / c, -a * a / c + c, -a * b / c",
        "tests/denoise tests/oracle",
    ),
    Fault(
        "sign",
        "guidance goes towards the null condition",
        "guide/cfg.py",
        "combine((scale, c), (1.0 - scale, n))",
        "combine((1.0 - scale, c), (scale, n))",
        "tests/oracle tests/guide tests/systems",
    ),
    Fault(
        "sign",
        "the forward move forgets the noise that is there",
        "process/affine.py",
        "(c**2 - (up * ct) ** 2)",
        "(c**2 + 0 * (up * ct) ** 2)",
        f"{CONTRACTS}/test_contract_03_law.py",
    ),
    Fault(
        "sign",
        "the largest margin counts as the least sure",
        "solve/confidence.py",
        "return top[..., 0] - top[..., 1]",
        "return top[..., 1] - top[..., 0]",
        "tests/solve/test_discrete_solvers.py tests/systems/test_text.py",
    ),
    Fault(
        "sign",
        "a step that errs too much is accepted",
        "grid/adaptive.py",
        "accept = (~(err > self.tol) | final) & ~waits",
        "accept = ~waits",
        "tests/grid",
    ),
    Fault(
        "sign",
        "particles of low reward win",
        "steer/fk.py",
        "log = self.strength * (r - before)",
        "log = self.strength * (before - r)",
        "tests/steer",
    ),
    # ------------------------------------------------------------------ indices
    Fault(
        "index",
        "rows of two queries are swapped on the way out of the border",
        "denoise/network.py",
        "v[a:b])\n                start = end",
        "v[v.shape[0] - b : v.shape[0] - a])\n                start = end",
        "tests/guide tests/oracle tests/denoise",
    ),
    Fault(
        "index",
        "particles take the row of their neighbour",
        "steer/fk.py",
        "rows[parent])",
        "rows[parent.roll(1)])",
        f"tests/steer {CONTRACTS} -k fk",
    ),
    Fault(
        "index",
        "a row's condition is that of the first element",
        "denoise/network.py",
        "cond if own is None else tree_map(lambda v: v[own.to(v.device)], cond)",
        "cond if own is None else tree_map(lambda v: v[0 * own.to(v.device)], cond)",
        f"{CONTRACTS}/test_contract_06_batch.py tests/guide",
    ),
    Fault(
        "index",
        "take forgets that copies need keys of their own",
        "core/state.py",
        'torch.where(copy > 0, fold(new["key"], copy), new["key"])',
        'torch.where(copy > 1, fold(new["key"], copy), new["key"])',
        "tests/core",
    ),
    Fault(
        "index",
        "a run ends a step before the data",
        "grid/fixed.py",
        "return state.i >= points.shape[-1] - 1",
        "return state.i >= points.shape[-1] - 2",
        "tests/grid",
    ),
    Fault(
        "index",
        "DeepCache keeps the channels of the skip, not those from below",
        "network/deepcache.py",
        "x[:, : x.shape[1] - width]",
        "x[:, width:]",
        "tests/network/test_deepcache.py",
    ),
    # ------------------------------------------------------------------ times
    Fault(
        "time",
        "Heun asks for the second slope at the old time",
        "solve/heun.py",
        'end = ask(euler, s, role="stage")',
        'end = ask(euler, state.t, role="stage")',
        HEUN,
    ),
    Fault(
        "time",
        "a multistep rule reads its own time for the earlier one",
        "solve/multistep.py",
        "((u(v) - here) / (u(s) - here) for v in past)",
        "((u(t) - here) / (u(s) - here) for v in past)",
        f"{CONTRACTS}/test_contract_02_order.py -k dpmpp-2m",
    ),
    Fault(
        "time",
        "the border asks a converted model at the plan's time",
        "denoise/network.py",
        "return torch.full_like(t, time_), scale_",
        "return torch.full_like(t, one), scale_",
        "tests/denoise tests/core",
    ),
    Fault(
        "time",
        "units that share a time are read as a shared float when they do not",
        "core/time.py",
        "return values[0] if values.count(values[0]) == len(values) else None",
        "return values[0]",
        f"{CONTRACTS}/test_contract_06_batch.py -k solve/euler",
    ),
    Fault(
        "time",
        "a warm start shifts by one more",
        "start/warm.py",
        "+ self.shift",
        "+ self.shift + 1",
        "tests/start tests/systems",
    ),
    Fault(
        "time",
        "the encoded start begins a step early",
        "start/encoded.py",
        "int(self.strength * n)",
        "int(self.strength * n) + 1",
        "tests/start tests/oracle",
    ),
    # ------------------------------------------------------------------ memory
    Fault(
        "memory",
        "what a solver remembered is lost when some elements wait",
        "core/loop.py",
        'memory=merge_rows(put, move.memory, state.memory.get("solve", {})),',
        "memory={},",
        f"{CONTRACTS}/test_contract_06_batch.py -k dpmpp-2m",
    ),
    Fault(
        "memory",
        "a rejected unit keeps the memory of the move",
        "core/loop.py",
        'solve = merge(unit, move.memory, memory.get("solve", {}))',
        "solve = dict(move.memory)",
        "tests/core tests/grid",
    ),
    Fault(
        "memory",
        "the history survives a jump back into the noise",
        "core/loop.py",
        'for name in ("solve", *self.layer_names):\n            chosen',
        "for name in self.layer_names:\n            chosen",
        "tests/core",
    ),
    Fault(
        "memory",
        "a cache forgets between steps",
        "denoise/network.py",
        "                memory = rows.memory\n",
        "",
        CACHE,
    ),
    Fault(
        "memory",
        "a cache is shared by all branches of a step",
        "network/patch.py",
        'return f"{self.tag}|{self.role}"',
        "return self.role",
        "tests/network tests/core/test_patch.py",
    ),
    Fault(
        "memory",
        "guidance's latch is decided again within a step",
        "guide/adaptive_guidance.py",
        'done: Tensor = before.get("done"',
        'done: Tensor = memory.get("done"',
        "tests/guide",
    ),
    Fault(
        "memory",
        "what only one of two memories holds is not empty in the other",
        "core/tree.py",
        "new = torch.zeros_like(old)",
        "new = torch.ones_like(old)",
        "tests/core",
    ),
    Fault(
        "memory",
        "the state's file leaves its groups out",
        "core/state.py",
        '("x", "cond", "t", "i", "key", "group", "memory")}',
        '("x", "cond", "t", "i", "key", "memory")}',
        "tests/core",
    ),
    # ------------------------------------------------------------------ keys and draws
    Fault(
        "key",
        "all elements of a batch draw the same noise",
        "core/key.py",
        "mix(key + i * _GOLD + _salt(salt))",
        "mix(key.flatten()[0] + i * _GOLD + _salt(salt))",
        f"{CONTRACTS} -k solve/ancestral",
    ),
    Fault(
        "key",
        "every step draws the same noise",
        "core/key.py",
        "mix(key + i * _GOLD + _salt(salt))",
        "mix(key + 0 * i * _GOLD + _salt(salt))",
        "tests/core",
    ),
    Fault(
        "key",
        "parts of one step share their draws",
        "core/loop.py",
        "return Noise(self.state.key, self.state.i, self.salt, stored)",
        "return Noise(self.state.key, self.state.i, 1, stored)",
        "tests/core",
    ),
    Fault(
        "key",
        "folded streams are the stream itself",
        "core/key.py",
        "self.salt * 1021 + salt + 1",
        "self.salt",
        "tests/core",
    ),
    Fault(
        "key",
        "a normal draw has the variance of a half",
        "core/key.py",
        "log_().mul_(-2).sqrt_()",
        "log_().mul_(-1).sqrt_()",
        "tests/core",
    ),
    # ------------------------------------------------------------------ restoring
    Fault(
        "restore",
        "a patched forward is left on the shell",
        "network/patch.py",
        "        if before is None:\n            del module.forward\n        else:\n            module.forward = before\n",
        "        pass\n",
        "tests/core/test_patch.py tests/network",
    ),
    Fault(
        "restore",
        "patches reach into the user's own module",
        "network/patch.py",
        "made[module] = copy.copy(module)",
        "made[module] = module",
        "tests/core/test_patch.py tests/network/test_deepcache.py",
    ),
    Fault(
        "restore",
        "a bound plan keeps gradients on",
        "core/loop.py",
        "torch.enable_grad() if self.gradients else torch.no_grad()",
        "torch.enable_grad()",
        "tests/core/test_loop.py",
    ),
    Fault(
        "restore",
        "a correction runs on elements that wait",
        "core/loop.py",
        "if len(rows) < len(state):\n                return self._correct_some",
        "if False:\n                return self._correct_some",
        "tests/core",
    ),
    Fault(
        "off",
        "guidance of scale 1 asks twice",
        "guide/cfg.py",
        "        if self.scale == 1.0:\n            return inner(queries), memory\n",
        "",
        CFG,
    ),
    Fault(
        "off",
        "a technique that did nothing is passed over",
        "api.py",
        "and p.on and not notes[p.entry.name]",
        "and p.on and False",
        "tests/core tests/guide",
    ),
)
