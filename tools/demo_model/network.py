"""
The demo network: fairchem's UMA classes hold the parameters, and `BatchedEnergy` evaluates the same
function for a batch of small molecules in a padded, dense layout that a CPU or GPU runs fast.

fairchem's own forward pass is written for a few large systems. A batch of sixteen molecules with
sixteen different mixtures of experts costs it a Python loop per linear layer; here every per-molecule
weight becomes one batched matrix product, and the neighbour sum is a sum over a dense axis instead of a
scatter. `check_against_fairchem` asserts that both give the same energies and forces.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DATASET = "omol"


def model_config(channels: int = 16, layers: int = 2, experts: int = 4, cutoff: float = 5.0, basis: int = 16, hidden: int = 0, edge: int = 0) -> dict:  # fmt: skip
    backbone = {
        "model": "fairchem.core.models.uma.escn_moe.eSCNMDMoeBackbone",
        "moe_dropout": 0.0,
        "moe_layer_type": "pytorch",
        "num_experts": experts,
        "use_composition_embedding": True,
        "composition_dropout": 0.0,
        "max_num_elements": 100,
        "sphere_channels": channels,
        "lmax": 2,
        "mmax": 2,
        "otf_graph": True,
        "max_neighbors": 300,
        "use_pbc": True,
        "use_pbc_single": True,
        "cutoff": cutoff,
        "edge_channels": edge or channels,
        "distance_function": "gaussian",
        "num_distance_basis": basis,
        "regress_forces": True,
        "regress_stress": True,
        "direct_forces": False,
        "num_layers": layers,
        "hidden_channels": hidden or channels,
        "norm_type": "rms_norm_sh",
        "act_type": "gate",
        "ff_type": "spectral",
        "chg_spin_emb_type": "rand_emb",
        "cs_emb_grad": True,
        "dataset_emb_grad": True,
        "always_use_pbc": False,
        "charge_balanced_channels": [0, 1],
        "dataset_mapping": {DATASET: DATASET},
    }
    head = {
        "module": "fairchem.core.models.uma.escn_moe.DatasetSpecificMoEWrapper",
        "head_cls": "fairchem.core.models.uma.escn_md.MLP_EFS_Head",
        "head_kwargs": {"wrap_property": False},
        "dataset_mapping": {DATASET: DATASET},
    }
    return {
        "_target_": "fairchem.core.models.base.HydraModel",
        "backbone": backbone,
        "heads": {"energyandforcehead": head},
        "pass_through_head_outputs": True,
        "model_id": "umaserve-demo-1",
        "supports_single_atoms": True,
    }


def hydra(config: dict) -> nn.Module:
    from fairchem.core.models.base import HydraModel

    return HydraModel(**{k: v for k, v in config.items() if k != "_target_"})


def rotation_table() -> torch.Tensor:
    """T[81, 25] with D2 = (R kron R) T: the l = 2 rotation in the orthonormal basis of symmetric traceless matrices."""
    r2, r6 = 2**-0.5, 6**-0.5
    b = np.zeros((5, 3, 3))
    b[0, 0, 2] = b[0, 2, 0] = b[1, 0, 1] = b[1, 1, 0] = b[3, 1, 2] = b[3, 2, 1] = r2
    b[2] = np.diag([-r6, 2 * r6, -r6])
    b[4] = np.diag([-r2, 0, r2])
    # D_ij = B_i[a,c] R[a,b] B_j[b,d] R[c,d]
    table = np.einsum("iac,jbd->abcdij", b, b).reshape(81, 25)
    return torch.tensor(table, dtype=torch.float32)


class NeighbourGather(torch.autograd.Function):
    """
    x[b*n, s, c] -> x[source]: features of the source atom of every edge. Every edge has its reverse, so
    the adjoint is a gather over the reverse edges and a sum over the dense neighbour axis, not a scatter.
    """

    @staticmethod
    def forward(ctx, x, source, reverse, k):
        ctx.save_for_backward(reverse)
        ctx.k = k
        return x[source]

    @staticmethod
    def backward(ctx, grad):
        (reverse,) = ctx.saved_tensors
        back = grad[reverse]
        return back.reshape(back.shape[0] // ctx.k, ctx.k, back.shape[1], back.shape[2]).sum(1), None, None, None


# Rows of the edge frame in m-primary order, as rows of the (l, m) order: m = 0, then +1, -1, +2, -2.
ORDER = [0, 2, 6, 3, 7, 1, 5, 8, 4]


class BatchedEnergy(nn.Module):
    """
    Normalised energies [B] of a padded batch, from the parameters of a HydraModel (shared, not copied).

    Slices of a tensor are made by one `split` wherever autograd passes: the adjoint of a split is one
    concatenation, that of a slice a zero-filled tensor per slice, which cost a third of a step.
    """

    def __init__(self, model: nn.Module, config: dict):
        super().__init__()
        self.p = nn.ParameterDict()
        for name, value in model.named_parameters():
            self.p[name.replace(".", "/")] = value
        b = config["backbone"]
        self.channels, self.hidden, self.layers = b["sphere_channels"], b["hidden_channels"], b["num_layers"]
        self.cutoff, self.balanced = b["cutoff"], len(b["charge_balanced_channels"])
        assert list(b["charge_balanced_channels"]) == list(range(self.balanced)) and self.balanced > 0
        mu = torch.linspace(0, b["cutoff"], b["num_distance_basis"])
        self.register_buffer("mu", mu)
        self.gauss = float(-0.5 / (2.0 * (mu[1] - mu[0])) ** 2)
        self.register_buffer("table", rotation_table())
        degree = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2])
        self.register_buffer("degree", degree)
        self.register_buffer("row_weight", 1.0 / ((2.0 * degree + 1) * 3.0))
        # Entry of [1, R (9), D2 (25)] that stands at each place of the 9 x 9 matrix in m-primary rows.
        place = torch.zeros(35, 81)
        for i, row in enumerate(ORDER):
            for column in range(9):
                if row == 0 and column == 0:
                    place[0, 9 * i] = 1
                elif 1 <= row <= 3 and 1 <= column <= 3:
                    place[1 + 3 * (row - 1) + column - 1, 9 * i + column] = 1
                elif row >= 4 and column >= 4:
                    place[10 + 5 * (row - 4) + column - 4, 9 * i + column] = 1
        self.register_buffer("place", place)
        # Radial weights of the convolution (l = 0..2 of m = 0, l = 1, 2 of m = 1, l = 2 of m = 2) for the nine rows.
        rows = torch.tensor([0, 1, 2, 3, 4, 3, 4, 5, 5])
        self.register_buffer("repeat", (rows[:, None] * 2 * self.channels + torch.arange(2 * self.channels)).flatten())
        self.radials = ["backbone.edge_degree_embedding.rad_func"]
        self.radials += [f"backbone.blocks.{i}.edge_wise.so2_conv_1.rad_func" for i in range(self.layers)]

    def w(self, name):
        return self.p[name.replace(".", "/")]

    def linear(self, name, x):
        return F.linear(x, self.w(name + ".weight"), self.w(name + ".bias"))

    def radial(self, name, x, rows=None):
        """The radial network after its first linear layer; `rows` repeats rows of the last one."""
        last, bias = self.w(f"{name}.net.6.weight"), self.w(f"{name}.net.6.bias")
        if rows is not None:
            last, bias = last[rows], bias[rows]
        x = F.silu(F.layer_norm(x, x.shape[-1:], self.w(f"{name}.net.1.weight"), self.w(f"{name}.net.1.bias"), 1e-5))
        x = self.linear(f"{name}.net.3", x)
        x = F.silu(F.layer_norm(x, x.shape[-1:], self.w(f"{name}.net.4.weight"), self.w(f"{name}.net.4.bias"), 1e-5))
        return F.linear(x, last, bias)

    def norm(self, name, x, shift=None):
        """x [A, 9, C]; `shift` [A, 1, C] is added to the scalars at the end."""
        first, rest = x.split([1, 8], 1)
        x = torch.cat([first - first.mean(-1, keepdim=True), rest], 1)
        scale = torch.einsum("arc,r->a", x * x, self.row_weight) / x.shape[2]
        x = x * torch.rsqrt(scale + 1e-5)[:, None, None] * self.w(name + ".affine_weight")[self.degree][None]
        bias = self.w(name + ".affine_bias").expand(x.shape[0], 1, -1)
        return x + F.pad(bias if shift is None else bias + shift, (0, 0, 0, 8))

    def mixed(self, name, alpha):
        """Weights of each system's mixture, transposed for x @ w: [B, in, out]."""
        w = self.w(name + ".weights")
        return (alpha @ w.flatten(1)).view(alpha.shape[0], w.shape[1], w.shape[2]).transpose(1, 2)

    def mixed_complex(self, name, alpha):
        """The same for (real, imaginary) input and output rows: [[Wa, Wb], [-Wb, Wa]], [B, 2 in, 2 out]."""
        a, b = self.mixed(name, alpha).chunk(2, 2)
        return torch.cat([torch.cat([a, b], 2), torch.cat([-b, a], 2)], 1)

    def wigner(self, u):
        """D [E, 9, 9] (rows m-primary) of a rotation that takes the unit vectors u [E, 3] to +y."""
        x, y, z = u.unbind(1)
        s = torch.where(y < -0.2, -1.0, 1.0).detach()
        y, z = s * y, s * z
        h = 1.0 / (1.0 + y)
        xh = x * h
        xzh, zh = xh * z, z * h
        r = torch.stack([1 - x * xh, -x * s, -xzh * s, x, y * s, z * s, -xzh, -z * s, (1 - z * zh) * s], 1)
        rr = (r[:, :, None] * r[:, None, :]).reshape(-1, 81)
        return (torch.cat([torch.ones_like(x)[:, None], r, rr @ self.table], 1) @ self.place).view(-1, 9, 9)

    def convolution(self, name, x, alpha, bsz):
        """SO(2) convolution of x [E, 9, c] (m-primary) -> rows of m = 0 (gates first), m = 1, m = 2, each [B, E / B, ...]."""
        c = x.shape[2]
        x0, x1, x2 = x.view(bsz, -1, 9 * c).split([3 * c, 4 * c, 2 * c], 2)
        y0 = torch.baddbmm(self.w(f"{name}.fc_m0.bias"), x0, self.mixed(f"{name}.fc_m0", alpha))
        y1 = torch.bmm(x1, self.mixed_complex(f"{name}.so2_m_conv.0.fc", alpha))
        y2 = torch.bmm(x2, self.mixed_complex(f"{name}.so2_m_conv.1.fc", alpha))
        return y0, y1, y2

    def so3(self, name, x):
        y = torch.bmm(x.transpose(0, 1), self.w(name + ".weight")[self.degree].transpose(1, 2)).transpose(0, 1)
        return y + F.pad(self.w(name + ".bias").expand(x.shape[0], 1, -1), (0, 0, 0, 8))

    def forward(self, vec, numbers, mask, charge, spin, source, reverse):
        """
        vec [B, N, K, 3] from target to source (padding: longer than the cutoff), numbers [B, N] (0: padding),
        mask [B, N] (1.0: real), charge, spin [B], source [B*N*K] index of the source atom in B*N,
        reverse [B*N*K] index of the reverse edge in B*N*K (padding edges: themselves).
        """
        bsz, n, k, _ = vec.shape
        vec = vec.reshape(-1, 3)
        edges = vec.shape[0]
        count = mask.sum(1)
        d = torch.sqrt((vec * vec).sum(1))
        u = vec / d[:, None]
        q = torch.clamp(d / self.cutoff, max=1.0)
        q5 = (q * q) * (q * q) * q
        envelope = 1 + q5 * (-21 + q * (35 - 15 * q))
        basis = torch.exp(self.gauss * (d[:, None] - self.mu) ** 2)
        z = numbers.reshape(-1)
        c, hid = self.channels, self.hidden

        # First layers of all radial networks at once; their element parts are computed per atom.
        first = torch.cat([self.w(f"{name}.net.0.weight") for name in self.radials])
        bias = torch.cat([self.w(f"{name}.net.0.bias") for name in self.radials])
        se, te = self.w("backbone.source_embedding.weight"), self.w("backbone.target_embedding.weight")
        of_basis, of_source, of_target = first.split([self.mu.shape[0], se.shape[1], te.shape[1]], 1)
        atom_source = F.linear(se, of_source)[z]
        atom_target = F.linear(te, of_target, bias)[z]
        width = bias.shape[0]
        radial = NeighbourGather.apply(atom_source[:, None], source, reverse, k).view(bsz * n, k, width) + atom_target[:, None]
        radial = torch.addmm(radial.view(edges, width), basis, of_basis.t()).split(width // len(self.radials), 1)

        csd = torch.cat(
            [
                self.w("backbone.charge_embedding.rand_emb.weight")[charge + 100],
                self.w("backbone.spin_embedding.rand_emb.weight")[spin],
                self.w(f"backbone.dataset_embedding.dataset_emb_dict.{DATASET}.weight").expand(bsz, -1),
            ],
            1,
        )
        csd = F.silu(self.linear("backbone.mix_csd", csd))
        composition = self.w("backbone.composition_embedding.weight")[numbers]
        composition = (composition * mask[..., None]).sum(1) / count[:, None]
        h = torch.cat([composition, csd], 1)
        for i in (0, 2, 4):
            h = F.silu(self.linear(f"backbone.routing_mlp.{i}", h))
        alpha = torch.softmax(h, 1) + 0.005
        csd_atom = csd[:, None].expand(-1, n, -1).reshape(bsz * n, 1, c)

        wigner = self.wigner(u)
        inverse = (wigner * envelope[:, None, None]).transpose(1, 2)
        x = F.pad(self.w("backbone.sphere_embedding.weight")[z][:, None] + csd_atom, (0, 0, 0, 8))
        rho = self.radial(self.radials[0], radial[0]).view(edges, 3, c)
        message = torch.bmm(inverse[:, :, :3], rho)
        x = x + message.view(bsz * n, k, 9, c).sum(1) / 5.0
        for block in range(self.layers):
            p = f"backbone.blocks.{block}"
            y = self.norm(f"{p}.norm_1", x, csd_atom)
            here = y[:, None].expand(-1, k, -1, -1).reshape(edges, 9, c)
            m = torch.bmm(wigner, torch.cat([NeighbourGather.apply(y, source, reverse, k), here], 2))
            m = m * self.radial(self.radials[block + 1], radial[block + 1], self.repeat).view(edges, 9, 2 * c)
            y0, y1, y2 = self.convolution(f"{p}.edge_wise.so2_conv_1", m, alpha, bsz)
            # Gate: SiLU(x) = x sigmoid(x) on l = 0, x sigmoid(gate of l) on the rest.
            gate, rows0 = y0.split([2 * hid, 3 * hid], 2)
            scalar, rest = rows0.split([hid, 2 * hid], 2)
            gate = torch.sigmoid(torch.cat([gate, scalar], 2))
            g12, g0 = gate.split([2 * hid, hid], 2)
            g2 = g12[..., hid:]
            m = torch.cat([scalar * g0, rest * g12, y1 * torch.cat([g12, g12], 2), y2 * torch.cat([g2, g2], 2)], 2)
            y0, y1, y2 = self.convolution(f"{p}.edge_wise.so2_conv_2", m.view(edges, 9, hid), alpha, bsz)
            m = torch.bmm(inverse, torch.cat([y0, y1, y2], 2).view(edges, 9, c))
            x = x + m.view(bsz * n, k, 9, c).sum(1)
            y = self.norm(f"{p}.norm_2", x)
            q = f"{p}.atom_wise"
            gate = torch.sigmoid(F.silu(self.linear(f"{q}.scalar_mlp.0", y[:, 0]))).view(-1, 2, hid)
            scalar, rest = self.so3(f"{q}.so3_linear_1", y).split([1, 8], 1)
            y = torch.cat([F.silu(scalar), rest * gate[:, self.degree[1:] - 1]], 1)
            x = x + self.so3(f"{q}.so3_linear_2", y)
            scalars = x[:, 0, : self.balanced].view(bsz, n, self.balanced)
            excess = ((scalars * mask[..., None]).sum(1) - charge[:, None]) / count[:, None]
            shift = excess[:, None].expand(-1, n, -1).reshape(bsz * n, 1, self.balanced)
            x = x - F.pad(shift, (0, c - self.balanced, 0, 8))
        x = self.norm("backbone.norm", x)[:, 0]
        head = "output_heads.energyandforcehead.head.energy_block"
        for i in (0, 2, 4):
            x = F.linear(x, self.w(f"{head}.{i}.weights")[0], self.w(f"{head}.{i}.bias"))
            if i < 4:
                x = F.silu(x)
        return (x.view(bsz, n) * mask).sum(1)


class Batch:
    """A padded batch of systems as tensors, with the neighbour lists of one cutoff."""

    def __init__(self, systems, cutoff: float, device="cpu", atoms: int = 0, neighbours: int = 0):
        """systems: list of (numbers, positions, charge, spin); sizes are padded to `atoms` and `neighbours` if larger."""
        bsz = len(systems)
        n = max(atoms, max(len(s[0]) for s in systems))
        numbers = np.zeros((bsz, n), np.int64)
        positions = np.zeros((bsz, n, 3), np.float32)
        for b, (z, x, _, _) in enumerate(systems):
            numbers[b, : len(z)] = z
            positions[b, : len(z)] = x
        real = numbers > 0
        d2 = ((positions[:, :, None] - positions[:, None]) ** 2).sum(-1)
        bonded = (d2 < cutoff**2) & real[:, :, None] & real[:, None] & ~np.eye(n, dtype=bool)[None]
        k = max(neighbours, int(bonded.sum(-1).max()), 1)
        order = np.argsort(~bonded, axis=-1, kind="stable")[:, :, : min(k, n)]
        valid = np.take_along_axis(bonded, order, -1)
        if order.shape[2] < k:
            pad = k - order.shape[2]
            order, valid = np.pad(order, ((0, 0), (0, 0), (0, pad))), np.pad(valid, ((0, 0), (0, 0), (0, pad)))
        place = np.cumsum(bonded, -1) - 1  # place[b, i, j]: position of j in the list of i
        b_index = np.arange(bsz)[:, None, None]
        i_index = np.arange(n)[None, :, None]
        reverse = (b_index * n + order) * k + place[b_index, order, i_index]
        itself = (b_index * n + i_index) * k + np.arange(k)[None, None]
        source = np.where(valid, b_index * n + order, b_index * n + i_index)
        reverse = np.where(valid, reverse, itself)
        put = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(device)  # noqa: E731
        self.shape = (bsz, n, k)
        self.numbers, self.positions, self.valid = put(numbers), put(positions), put(valid)
        self.mask = put(real.astype(np.float32))
        self.charge = put(np.array([s[2] for s in systems], np.int64))
        self.spin = put(np.array([s[3] for s in systems], np.int64))
        self.source, self.reverse = put(source.reshape(-1)), put(reverse.reshape(-1))
        self.far = torch.tensor([0.0, 1.5 * cutoff, 0.0], device=device)

    def vectors(self, positions=None):
        """Edge vectors [B, N, K, 3], from target to source."""
        x = self.positions if positions is None else positions
        bsz, n, k = self.shape
        v = x.reshape(-1, 3)[self.source].view(bsz, n, k, 3) - x[:, :, None]
        return torch.where(self.valid[..., None], v, self.far)

    def forces(self, grad):
        """Forces [B, N, 3] from the gradient of the energy with respect to the edge vectors."""
        bsz, n, k = self.shape
        grad = grad * self.valid[..., None]
        back = grad.reshape(-1, 3)[self.reverse].view(bsz, n, k, 3) * self.valid[..., None]
        return grad.sum(2) - back.sum(2)

    def arguments(self):
        return self.numbers, self.mask, self.charge, self.spin, self.source, self.reverse

    def twice(self):
        """The arguments of the network for this batch followed by itself."""
        bsz, n, k = self.shape
        again = [torch.cat([t, t]) for t in self.arguments()[:4]]
        return *again, torch.cat([self.source, self.source + bsz * n]), torch.cat([self.reverse, self.reverse + bsz * n * k])


def energy_and_forces(net, batch: Batch):
    vec = batch.vectors().detach().requires_grad_(True)
    energy = net(vec, *batch.arguments())
    (grad,) = torch.autograd.grad(energy.sum(), vec)
    return energy.detach(), batch.forces(grad)


def check_against_fairchem(model, net, systems, cutoff: float) -> float:
    """Largest difference of normalised energies and forces to fairchem's own forward pass; raises beyond 2e-4."""
    from ase import Atoms
    from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch

    energy, forces = energy_and_forces(net, Batch(systems, cutoff))
    model.eval()
    worst = 0.0
    for i, (z, x, charge, spin) in enumerate(systems):
        atoms = Atoms(numbers=z, positions=x, info={"charge": charge, "spin": spin})
        data = AtomicData.from_ase(atoms, r_data_keys=["charge", "spin"], task_name=DATASET)
        out = model(atomicdata_list_to_batch([data]))
        e = out[f"{DATASET}_energy"]["energy"] if f"{DATASET}_energy" in out else out["energyandforcehead"]["energy"]
        f = out[f"{DATASET}_forces"]["forces"] if f"{DATASET}_forces" in out else out["energyandforcehead"]["forces"]
        worst = max(worst, abs(float(e.detach()) - float(energy[i])), float((f.detach() - forces[i, : len(z)]).abs().max()))
    if worst > 2e-4:
        raise AssertionError(f"the batched network differs from fairchem by {worst}")
    return worst
