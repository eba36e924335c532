"""
Intermediate values of the network, stage by stage, for one small crystal.

    python make_stages.py ../../tests/data            # writes stages-1p1.json, stages-1p2.json, stages-m.json

The structure is a sheared and rattled cell of four atoms of rock salt, task omat, charge 2, spin 0.
Everything is float64. E is the number of edges, N the number of atoms, L lmax, C the channels; edge
vectors are source minus target. The numbers come from ref_uma.py; total energy, forces and stress
of the same structure come from fairchem, and the script refuses to write what does not agree with
both fairchem and the hand-written gradient of ref_bwd.py.

    numbers (N), positions (N x 3), cell (3 x 3), pbc, charge, spin, task
    edges: source (E), target (E), vector (E x 3); ordered by target
    csd (C)                         charge, spin and dataset embedding, mixed
    alpha (experts)                 weights of the experts
    gaussians (8 x basis), envelope (8)         of the first 8 edges
    wigner_m0 (8 x (L+1) x (L+1)^2)             rows m = 0 of the rotation into the edge frame, l = 0..L: those that
                                                do not depend on the free angle about the edge
    radial_edge_degree (8 x (L+1)C)             radial function of the edge-degree embedding
    radial (blocks x 2 x ...)                   radial function of so2_conv_1, first 2 edges
    nodes_initial (N x (L+1)^2 x C)             after the edge-degree embedding
    nodes_after_edgewise, nodes_after_block (blocks x N x (L+1)^2 x C)    after the first residual sum; after the block
    final_norm_scalars (N x C)                  row l = 0 after the last norm
    node_energies (N), normalised_energy        what the head says, before rmsd and element references
    gradient (E x 3)                            d(normalised_energy)/d(edge vector)
    energy (eV), forces (N x 3, eV/Angstrom), stress (3 x 3, eV/Angstrom^3)    from fairchem

Needs: pip install fairchem-core==2.24.0
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import InferenceSettings, load_predict_unit

from ref_bwd import Bwd
from ref_uma import Ref

TASK, CHARGE, SPIN = "omat", 2, 0
DATA = pathlib.Path(__file__).resolve().parent / ".." / ".." / "tests" / "data"
FIRST_EDGES = ["gaussians", "envelope", "wigner_m0", "radial_edge_degree"]
PER_BLOCK = ["nodes_after_edgewise", "nodes_after_block"]
WHOLE = ["csd", "alpha", "nodes_initial", "final_norm_scalars", "node_energies"]


def structure() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.64) * (2, 1, 1)
    strain = np.array([[1.02, 0.03, 0.0], [0.01, 0.97, 0.02], [0.0, -0.02, 1.01]])
    atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
    atoms.rattle(0.1, seed=3)
    return atoms


def close(what: str, a, b, tolerance: float) -> None:
    error = float(np.abs(np.asarray(a) - np.asarray(b)).max())
    print(f"  {what}: differs by {error:.1e}")
    if not error < tolerance:
        raise SystemExit(f"{what} does not agree: {error}")


def stages(checkpoint: pathlib.Path) -> dict:
    saved = torch.load(checkpoint, map_location="cpu", weights_only=False)
    ref = Ref(saved)
    atoms = structure()
    numbers = torch.tensor(atoms.numbers)
    positions, cell = torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)
    target, source, shift = neighbor_list("ijS", atoms, ref.cfg["cutoff"])
    target, source = torch.tensor(target), torch.tensor(source)
    shift = torch.tensor(shift, dtype=torch.float64)
    include_self = saved.model_config.get("model_id") == "UMA-S-1.2"

    vector = (positions[source] - positions[target] + shift @ cell).requires_grad_(True)
    seen: dict[str, list[torch.Tensor]] = {}
    energy = ref.energy_of_edges(vector, numbers, source, target, CHARGE, SPIN, TASK, include_self, seen)
    (gradient,) = torch.autograd.grad(energy, [vector])
    energy, vector = energy.item(), vector.detach()

    with torch.no_grad():
        e, dpos, virial, _ = Bwd(ref).run(
            positions, cell, numbers, source, target, shift, CHARGE, SPIN, TASK, include_self
        )
    from_edges = torch.zeros_like(positions).index_add(0, source, gradient).index_add(0, target, -gradient)
    close("hand-written energy", e, energy, 1e-11)
    close("hand-written gradient", dpos, from_edges, 1e-11)

    unit = load_predict_unit(
        str(checkpoint), inference_settings=InferenceSettings(base_precision_dtype=torch.float64), device="cpu"
    )
    atoms.info.update(charge=CHARGE, spin=SPIN)
    atoms.calc = FAIRChemCalculator(unit, task_name=TASK)
    task = next(t for t in saved.tasks_config if t["name"] == f"{TASK}_energy")
    rmsd = task["normalizer"]["rmsd"]
    references = np.array(task["element_references"]["element_references"]["_args_"][0])
    stress = atoms.get_stress(voigt=False)
    close("energy of fairchem", atoms.get_potential_energy(), rmsd * energy + references[atoms.numbers].sum(), 1e-9)
    close("forces of fairchem", atoms.get_forces(), -rmsd * from_edges, 1e-9)
    close("stress of fairchem", stress, rmsd * virial / atoms.get_volume(), 1e-9)

    plain = lambda t: t.tolist()  # noqa: E731
    out = {
        "checkpoint": checkpoint.name,
        "task": TASK,
        "charge": CHARGE,
        "spin": SPIN,
        "numbers": plain(numbers),
        "positions": plain(positions),
        "cell": plain(cell),
        "pbc": atoms.pbc.tolist(),
        "edges": {"source": plain(source), "target": plain(target), "vector": plain(vector)},
    }
    out |= {name: plain(seen[name][0]) for name in WHOLE}
    out |= {name: plain(seen[name][0][:8]) for name in FIRST_EDGES}
    out["radial_edge_degree"] = plain(seen["radial_edge_degree"][0][:8].flatten(1))
    out["radial"] = [plain(r[:2]) for r in seen["radial"]]
    out |= {name: [plain(x) for x in seen[name]] for name in PER_BLOCK}
    out |= {
        "normalised_energy": energy,
        "gradient": plain(gradient),
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces().tolist(),
        "stress": stress.tolist(),
    }
    return out


def main() -> None:
    for name in ("1p1", "1p2", "m"):
        print(name)
        answer = stages(DATA / f"nano-{name}.pt")
        path = pathlib.Path(sys.argv[1]) / f"stages-{name}.json"
        path.write_text(json.dumps(answer, separators=(",", ":")) + "\n")
        print(f"  {path}: {path.stat().st_size // 1000} kB, {len(answer['edges']['source'])} edges")


if __name__ == "__main__":
    main()
