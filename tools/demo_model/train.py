"""
Train the demo model on the shards of make_data.py.

    python train.py DATA_DIR RUN_DIR --until 05:45           # or --minutes 90; the learning rate ends at zero there
    python train.py DATA_DIR RUN_DIR --until 05:45           # again: continues from RUN_DIR/state.pt
    python train.py DATA_DIR RUN_DIR --init demo.pt          # start from the weights of a checkpoint that export wrote
    python train.py DATA_DIR RUN_DIR --export demo.pt        # write the averaged weights in the official format
    python train.py DATA_DIR RUN_DIR --check                 # batched network against fairchem's forward pass

The gradient of a loss on forces needs mixed second derivatives of the energy. They are taken as a central
difference along the one direction that matters: with g = dL/dF,
    dL/dtheta = -d/dtheta [E(x + eps g) - E(x - eps g)] / (2 eps),
so that a step is one force evaluation and one ordinary parameter gradient of a doubled batch, without a
graph of the backward pass. The displacement is 0.01 Angstrom for the atom that moves most.

Needs: pip install fairchem-core==2.24.0 numpy ase
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from frames import Frames
from network import DATASET, Batch, BatchedEnergy, check_against_fairchem, energy_and_forces, hydra, model_config

DISPLACEMENT = 0.01  # Angstrom
ELEMENTS = (1, 6, 7, 8)


def element_references(frames: Frames, rows) -> np.ndarray:
    """Least-squares energy per element (eV, indexed by Z) of the neutral closed-shell frames."""
    rows = [i for i in rows if frames.charge[i] == 0 and frames.spin[i] == 1]
    counts = np.array([[np.sum(frames.system(i)[0] == z) for z in ELEMENTS] for i in rows], float)
    solution, *_ = np.linalg.lstsq(counts, frames.energy[rows], rcond=None)
    references = np.zeros(100)
    references[list(ELEMENTS)] = solution
    return references


class Muon(torch.optim.Optimizer):
    """
    Momentum whose matrices are orthogonalised (Jordan et al. 2024, Newton-Schulz of degree five), scaled to the
    step size of Adam (Liu et al. 2025, arXiv:2502.16982); Adam for everything that is not a hidden matrix.
    """

    def __init__(self, matrices, others, lr, weight_decay=0.0):
        groups = [dict(params=matrices, muon=True), dict(params=others, muon=False)]
        super().__init__(groups, dict(lr=lr, momentum=0.95, betas=(0.9, 0.98), weight_decay=weight_decay))

    @staticmethod
    def orthogonal(g, steps=5):
        shape = g.shape
        x = g.reshape(-1, shape[-2], shape[-1])
        turn = x.shape[1] > x.shape[2]
        if turn:
            x = x.transpose(1, 2)
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)
        for _ in range(steps):
            a = x @ x.transpose(1, 2)
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return (x.transpose(1, 2) if turn else x).reshape(shape)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr = group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if group["muon"]:
                    if not state:
                        state["m"] = torch.zeros_like(p)
                    m = state["m"].mul_(group["momentum"]).add_(p.grad)
                    update = self.orthogonal(p.grad + group["momentum"] * m)
                    p.mul_(1 - lr * group["weight_decay"])
                    p.add_(update, alpha=-lr * 0.2 * math.sqrt(max(p.shape[-2], p.shape[-1])))
                else:
                    if not state:
                        state["m"], state["v"], state["t"] = torch.zeros_like(p), torch.zeros_like(p), 0
                    state["t"] += 1
                    b1, b2 = group["betas"]
                    m = state["m"].lerp_(p.grad, 1 - b1)
                    v = state["v"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                    t = state["t"]
                    p.addcdiv_(m / (1 - b1**t), (v / (1 - b2**t)).sqrt_().add_(1e-8), value=-lr)


def is_hidden_matrix(name: str, p) -> bool:
    if p.dim() < 2 or "embedding.weight" in name or "rand_emb" in name or "dataset_emb" in name or "norm" in name:
        return False
    return not ("routing" in name or "mix_csd" in name or name.endswith("energy_block.4.weights") or "composition" in name)


def batches(frames: Frames, rows, rng, edges: int, largest: int):
    """Endless batches of rows of similar size whose padded edge count is about `edges`."""
    while True:
        order = rng.permutation(rows)
        out = []
        for chunk in np.array_split(order, max(1, len(order) // 1024)):
            chunk = chunk[np.argsort(frames.natoms[chunk], kind="stable")]
            at = 0
            while at < len(chunk):
                n = int(frames.natoms[chunk[min(at + 4, len(chunk) - 1)]])
                size = max(1, min(largest, edges // (n * max(1, min(n - 1, 17)))))
                out.append(chunk[at : at + size])
                at += size
        for i in rng.permutation(len(out)):
            yield out[i]


class Trainer:
    def __init__(self, args):
        self.args = args
        self.device = torch.device(args.device)
        self.frames = Frames(args.data)
        self.train_rows, self.test_rows = self.frames.select("train"), self.frames.select("test")
        args.run.mkdir(parents=True, exist_ok=True)
        self.state_path = args.run / "state.pt"
        saved = torch.load(self.state_path, map_location="cpu", weights_only=False) if self.state_path.exists() else None
        torch.manual_seed(args.seed)
        weights = None
        if saved:
            self.config, self.references, self.rmsd = saved["config"], saved["references"], saved["rmsd"]
        elif args.init:
            self.config, self.references, self.rmsd, weights = read_checkpoint(args.init)
        else:
            self.config = model_config(args.channels, args.layers, args.experts, args.cutoff, args.basis)
            self.references = element_references(self.frames, self.train_rows)
            some = np.concatenate([self.frames.force(i) for i in self.train_rows[:5000]])
            self.rmsd = float(np.sqrt((some.astype(float) ** 2).mean()))
        self.cutoff = self.config["backbone"]["cutoff"]
        self.model = hydra(self.config).to(self.device)
        if weights:
            self.model.load_state_dict(weights)
        self.net = BatchedEnergy(self.model, self.config).to(self.device)
        self.parameters = dict(self.net.named_parameters())
        # Expert and routing parameters first get the spread that makes experts differ from one another.
        self.step, self.elapsed = 0, 0.0
        names = list(self.parameters)
        matrices = [n for n in names if is_hidden_matrix(n, self.parameters[n])] if args.optimizer == "muon" else []
        others = [n for n in names if n not in set(matrices)]
        self.optimizer = Muon([self.parameters[n] for n in matrices], [self.parameters[n] for n in others], args.lr, args.weight_decay)
        if saved:
            self.net.load_state_dict(saved["net"])
            self.step, self.elapsed = saved["step"], saved["elapsed"]
            if not args.fresh_optimizer:
                self.optimizer.load_state_dict(saved["optimizer"])
        self.ema = {n: p.detach().clone() for n, p in self.parameters.items()}
        if saved:
            self.ema = {n: v.to(self.device) for n, v in saved["ema"].items()}
        self.shift = self.frames.energy - np.array(
            [self.references[self.frames.numbers[a:b]].sum() for a, b in zip(self.frames.start[:-1], self.frames.start[1:])]
        )

    def batch(self, rows):
        b = Batch([self.frames.system(i) for i in rows], self.cutoff, self.device)
        forces = np.zeros((*b.shape[:2], 3), np.float32)
        for k, i in enumerate(rows):
            forces[k, : self.frames.natoms[i]] = self.frames.force(i)
        energy = torch.tensor(self.shift[rows] / self.rmsd, dtype=torch.float32, device=self.device)
        return b, energy, torch.from_numpy(forces / self.rmsd).to(self.device)

    def gradients(self, rows, energy_weight):
        """Sets .grad of every parameter; returns (mean |dE|/atom, mean |dF| component) in eV and eV/Angstrom."""
        b, energy, forces = self.batch(rows)
        e, f = energy_and_forces(self.net, b)
        atoms = b.mask.sum()
        count = b.mask.sum(1)
        residual = (f - forces) * b.mask[..., None]
        length = torch.sqrt((residual * residual).sum(-1) + 1e-4)  # |dF| of each atom, smooth below 0.01
        g_force = residual / length[..., None] / atoms
        per_atom = (e - energy) / count
        # Huber on the energy per atom, weighted by atoms as the forces are.
        delta = 0.02
        g_energy = energy_weight * torch.clamp(per_atom / delta, -1, 1) / atoms
        top = g_force.square().sum(-1).sqrt().amax(1) + 1e-20
        eps = DISPLACEMENT / top
        move = eps[:, None, None] * g_force
        both = b.twice()
        vec = torch.cat([b.vectors(b.positions + move), b.vectors(b.positions - move)])
        out = self.net(vec, *both)
        weight = torch.cat([0.5 * g_energy - 0.5 / eps, 0.5 * g_energy + 0.5 / eps])
        (out * weight).sum().backward()
        with torch.no_grad():
            e_err = (per_atom.abs() * count).sum() / atoms * self.rmsd
            f_err = residual.abs().sum() / (3 * atoms) * self.rmsd
        return float(e_err), float(f_err)

    def progress(self):
        return min(1.0, self.elapsed / self.total)

    def train(self):
        args = self.args
        if args.until:
            hour, minute = map(int, args.until.split(":"))
            now = datetime.datetime.now(datetime.timezone.utc)
            remaining = (now.replace(hour=hour, minute=minute, second=0) - now).total_seconds()
        else:
            remaining = args.minutes * 60 - self.elapsed
        self.total = self.elapsed + max(1.0, remaining)
        rng = np.random.default_rng([args.seed, self.step])
        stream = batches(self.frames, self.train_rows, rng, args.edges, args.largest)
        log = open(args.run / "log.jsonl", "a")
        print(f"{len(self.train_rows)} training frames, {len(self.test_rows)} held out, rmsd {self.rmsd:.3f}, "
              f"{sum(p.numel() for p in self.parameters.values()):,} parameters, {remaining / 60:.0f} minutes left", flush=True)  # fmt: skip
        last = time.monotonic()
        saved = tested = last
        e_mean = f_mean = 0.0
        counted = 0
        while self.progress() < 1.0:
            p = self.progress()
            lr = args.lr * min(1.0, (self.step + 1) / args.warmup) * max(1.0 - p, 0.0) ** args.decay_power
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.zero_grad(set_to_none=True)
            e, f = self.gradients(next(stream), args.energy_weight * (1 + 3 * p))
            norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), args.clip)
            if torch.isfinite(norm):
                self.optimizer.step()
            decay = min(args.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - decay)
            self.step += 1
            e_mean, f_mean, counted = e_mean + e, f_mean + f, counted + 1
            now = time.monotonic()
            self.elapsed += now - last
            last = now
            if counted == args.report:
                row = dict(step=self.step, minutes=round(self.elapsed / 60, 2), cpu=round(time.process_time(), 1), lr=lr, energy=round(1e3 * e_mean / counted, 2), force=round(1e3 * f_mean / counted, 1), norm=round(float(norm), 3))  # fmt: skip
                if now - tested > args.test_every:
                    row |= self.test(300)
                    tested = time.monotonic()
                print(json.dumps(row), flush=True)
                print(json.dumps(row), file=log, flush=True)
                e_mean = f_mean = 0.0
                counted = 0
            if now - saved > 120:
                self.save()
                saved = time.monotonic()
        self.save()
        print(json.dumps(self.test(100000)), flush=True)

    def test(self, limit):
        """Errors of the averaged weights on held-out molecules: meV/atom and meV/Angstrom (mean absolute)."""
        live = {n: p.detach().clone() for n, p in self.parameters.items()}
        with torch.no_grad():
            for n, p in self.parameters.items():
                p.copy_(self.ema[n])
        rows = self.test_rows[:: max(1, len(self.test_rows) // limit)]
        rows = rows[np.argsort(self.frames.natoms[rows], kind="stable")]
        e_err, f_err, f_count = [], 0.0, 0
        for at in range(0, len(rows), 16):
            chunk = rows[at : at + 16]
            b, energy, forces = self.batch(chunk)
            e, f = energy_and_forces(self.net, b)
            e_err.append(((e - energy).abs() / b.mask.sum(1)).cpu().numpy())
            f_err += float(((f - forces) * b.mask[..., None]).abs().sum())
            f_count += 3 * int(b.mask.sum())
        with torch.no_grad():
            for n, p in self.parameters.items():
                p.copy_(live[n])
        return dict(test_energy=round(1e3 * self.rmsd * float(np.concatenate(e_err).mean()), 2), test_force=round(1e3 * self.rmsd * f_err / f_count, 1))

    def save(self):
        temporary = self.state_path.with_suffix(".tmp")
        torch.save(
            dict(config=self.config, references=self.references, rmsd=self.rmsd, net=self.net.state_dict(), ema=self.ema,
                 optimizer=self.optimizer.state_dict(), step=self.step, elapsed=self.elapsed),
            temporary,
        )  # fmt: skip
        os.replace(temporary, self.state_path)

    def check(self):
        rows = self.train_rows[:: max(1, len(self.train_rows) // 12)]
        systems = [self.frames.system(i) for i in rows if self.frames.natoms[i] > 1]
        return check_against_fairchem(self.model, self.net, systems, self.cutoff)

    def export(self, path: Path):
        with torch.no_grad():
            for n, p in self.parameters.items():
                p.copy_(self.ema[n])
        print("largest difference to fairchem:", self.check())
        write_checkpoint(self.model, self.config, self.references, self.rmsd, path)


def task(prop: str, rmsd: float, references) -> dict:
    config = {
        "_target_": "fairchem.core.units.mlip_unit.mlip_unit.Task",
        "name": f"{DATASET}_{prop}",
        "level": "atom" if prop == "forces" else "system",
        "property": prop,
        "loss_fn": {"_target_": "torch.nn.L1Loss"},
        "out_spec": {"dim": [1] if prop == "energy" else [3], "dtype": "float32"},
        "normalizer": {"_target_": "fairchem.core.modules.normalization.normalizer.Normalizer", "mean": 0.0, "rmsd": rmsd},
        "datasets": [DATASET],
        "metrics": ["mae"],
    }
    if prop == "energy":
        config["element_references"] = {
            "_target_": "fairchem.core.modules.normalization.element_references.ElementReferences",
            "element_references": {"_target_": "torch.DoubleTensor", "_args_": [[float(r) for r in references]]},
        }
    return config


def write_checkpoint(model, config, references, rmsd, path: Path):
    """The official inference format; plain and averaged weights are the same tensors and stored once."""
    from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint
    from omegaconf import OmegaConf

    state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    ema = {"n_averaged": torch.tensor(1), **{"module." + k: v for k, v in state.items()}}
    tasks = OmegaConf.create([task("energy", rmsd, references), task("forces", rmsd, references)])
    torch.save(MLIPInferenceCheckpoint(model_config=config, model_state_dict=state, ema_state_dict=ema, tasks_config=list(tasks)), path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def read_checkpoint(path: Path):
    """What `write_checkpoint` wrote: configuration, element references (eV), rmsd (eV/Angstrom), averaged weights."""
    saved = torch.load(path, map_location="cpu", weights_only=False)
    energy = next(t for t in saved.tasks_config if t["property"] == "energy")
    references = np.array(energy["element_references"]["element_references"]["_args_"][0], float)
    return saved.model_config, references, float(energy["normalizer"]["rmsd"]), dict(saved.model_state_dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--until", help="HH:MM UTC today; instead of --minutes")
    parser.add_argument("--init", type=Path, help="checkpoint to start from when RUN_DIR has no state; the sizes are its own")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--basis", type=int, default=16)
    parser.add_argument("--edges", type=int, default=1400, help="padded edges of a batch")
    parser.add_argument("--largest", type=int, default=48, help="most systems of a batch")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--optimizer", choices=["muon", "adam"], default="muon")
    parser.add_argument("--fresh-optimizer", action="store_true", help="forget the optimizer's state when continuing")
    parser.add_argument("--decay-power", type=float, default=1.0)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--energy-weight", type=float, default=2.0)
    parser.add_argument("--clip", type=float, default=10.0)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=int, default=50)
    parser.add_argument("--test-every", type=float, default=300, help="seconds between tests on held-out molecules")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--export", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    if args.export:
        trainer.export(args.export)
    elif args.check:
        print("largest difference to fairchem:", trainer.check())
    else:
        trainer.train()


if __name__ == "__main__":
    main()
