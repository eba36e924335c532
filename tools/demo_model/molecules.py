"""
The chemical space of the demo model: neutral molecules of H, C, N, O with up to ten heavy atoms,
small ions, radicals, water clusters and molecular pairs. Every entry is (name, SMILES, charge,
spin multiplicity); the split into training and held-out molecules is made here, by molecule.
"""

from __future__ import annotations

import hashlib
import itertools
import random

from rdkit import Chem, RDLogger

RDLogger.DisableLog("rdApp.*")

# Molecules that people draw first; all of them are trained on unless they are in HELD_OUT.
COMMON = """
O N C [HH] CC C=C C#C CCC C=CC C#CC C=C=C CCCC CC(C)C C=CC=C CC(C)=C CCCCC C1CC1 C1CCC1 C1CCCC1 C1CCCCC1
c1ccccc1 Cc1ccccc1 Oc1ccccc1 Nc1ccccc1 O=Cc1ccccc1 OC(=O)c1ccccc1 C=Cc1ccccc1
c1ccncc1 c1cc[nH]c1 c1ccoc1 c1cnc[nH]1 c1cncnc1 c1cnccn1 O=c1cc[nH]cc1
CO CCO CCCO CC(C)O OCCO OCC(O)CO COC CCOCC C1CO1 C1CCOC1 C1COCCO1 OO COO
C=O CC=O CCC=O CC(C)=O O=CC=O C=CC=O C=C=O O=C=O [C-]#[O+] OC=O CC(=O)O CCC(=O)O COC=O CC(=O)OC OC(=O)C(=O)O
CN CCN CNC CN(C)C NN CNN NO C#N CC#N C=NC C=N NCCN NCCO C1CN1 C1CCNC1 C1CCNCC1 C1COCCN1 N#N N=[N+]=[N-]
NC=O CC(N)=O CNC=O CC(=O)NC CN(C)C=O NC(N)=O CC(=O)N(C)C CCC(=O)NC CNC(=O)NC
NCC(=O)O CC(N)C(=O)O CC(O)C(=O)O CC(=O)C(=O)O NCC(N)=O CNC(=O)CN CC(=O)NCC(N)=O CC(=O)NCC(=O)O
CC(=O)NCC(=O)NC CNC(=O)C(C)NC=O CC(NC=O)C(N)=O CC(NC(C)=O)C(N)=O CCNC(C)=O CC(C)NC(C)=O CNC(=O)C(C)C CC(C)C(N)=O
C[N+](=O)[O-] O=N O=[N+]([O-])O [O-][N+]=N
""".split()

IONS = [
    ("[OH3+]", 1), ("[OH-]", -1), ("[NH4+]", 1), ("C[NH3+]", 1), ("C[NH2+]C", 1), ("CC[NH3+]", 1), ("C[OH2+]", 1),
    ("[O-]C=O", -1), ("CC(=O)[O-]", -1), ("C[O-]", -1), ("[C-]#N", -1), ("C=[OH+]", 1), ("NC(N)=[NH2+]", 1),
    ("c1c[nH]c[nH+]1", 1), ("[O-]c1ccccc1", -1), ("O.[OH3+]", 1), ("O.[OH-]", -1), ("O.O.[OH3+]", 1), ("O.O.O.[OH3+]", 1),
    ("O.O.[OH-]", -1), ("O.[NH4+]", 1), ("O.O.[NH4+]", 1), ("O.C[NH3+]", 1), ("O.CC(=O)[O-]", -1), ("N.[NH4+]", 1),
    ("CO.[OH3+]", 1), ("O.[O-]C=O", -1), ("O.O.O.O.[OH3+]", 1), ("CC=[OH+]", 1), ("CC(O)=[OH+]", 1), ("CC[O-]", -1),
]  # fmt: skip

# (SMILES, charge, spin multiplicity)
RADICALS = [
    ("[CH3]", 0, 2), ("[OH]", 0, 2), ("[NH2]", 0, 2), ("C[CH2]", 0, 2), ("C[O]", 0, 2), ("[CH2]O", 0, 2), ("O[O]", 0, 2),
    ("C[NH]", 0, 2), ("[CH]=O", 0, 2), ("C=[CH]", 0, 2), ("[O][O]", 0, 3), ("[CH2]", 0, 3), ("C[CH]C", 0, 2), ("[CH2]C=C", 0, 2),
    ("C=C", 0, 3), ("C=O", 0, 3), ("O.[OH]", 0, 2), ("[OH2+]", 1, 2), ("[H]", 0, 2), ("[O]", 0, 3), ("[N]=O", 0, 2), ("O=[N+][O-]", 0, 2),
    ("[NH]", 0, 3), ("CC[O]", 0, 2), ("C[C]=O", 0, 2),
]  # fmt: skip

CORES = """
{0}{1} C({0}){1} C({0})({1})C C{0}C{1} C({0})=C{1} C({0})C(=O){1} C({0})OC{1} C({0})NC{1} O=C({0}){1} N({0}){1} O({0}){1}
c1ccc({0})cc1{1} c1cc({0})oc1{1} c1cn({0})cc1{1} c1cnc({0})n1{1} C1CC1({0}){1} C1CCC({0})C1{1} C1CC({0})OC1{1} C1CN({0})CC1{1}
C({0})C#C{1} C({0})C=C{1} N({0})C(=O){1} C({0})(O)C{1} C({0})(N)C(=O){1} O=C({0})O{1} O=C({0})C{1}
""".split()
GROUPS = ["[H]", "C", "CC", "O", "N", "OC", "NC", "C=O", "C(=O)O", "C(N)=O", "C#N", "C(C)=O", "C=C", "CO", "CN", "C(C)C", "C#C"]
FORBIDDEN = [Chem.MolFromSmarts(s) for s in ("OO", "NN", "[NX3]O", "[CX4]([OH])[OH]", "[CX4]([NX3])[OH]", "OC#*", "NC#*", "OC#N", "[OH]C=C", "[NH2]C=C", "[CX4](O)(O)O", "C=C=C")]  # fmt: skip

# Alanine dipeptide is the demonstration system that is never trained on.
HELD_OUT = {"CC(=O)NC(C)C(=O)NC"}
HELD_OUT_SHARE = 0.10
MAX_HEAVY = 8


def canonical(smiles: str) -> str:
    return Chem.MolToSmiles(Chem.MolFromSmiles(smiles))


def combinations(count: int, seed: int = 0) -> list[str]:
    """Random members of cores x groups x groups, without the common molecules."""
    known = {canonical(s) for s in COMMON}
    found = set()
    for core, a, b in itertools.product(CORES, GROUPS, GROUPS):
        text = core.format(a, b)
        mol = Chem.MolFromSmiles(text)
        if mol is None:
            continue
        mol = Chem.RemoveHs(mol)
        smiles = Chem.MolToSmiles(mol)
        if "." in smiles or mol.GetNumHeavyAtoms() > MAX_HEAVY or mol.GetNumHeavyAtoms() < 3 or smiles in known:
            continue
        if any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()):
            continue
        if any(mol.HasSubstructMatch(pattern) for pattern in FORBIDDEN):
            continue
        found.add(smiles)
    chosen = sorted(found)
    random.Random(seed).shuffle(chosen)
    return chosen[:count]


def held_out(smiles: str) -> bool:
    """The split: by a hash of the canonical SMILES, so that it never depends on the order of anything."""
    if smiles in {canonical(s) for s in HELD_OUT}:
        return True
    digest = int(hashlib.sha256(smiles.encode()).hexdigest()[:8], 16)
    return digest / 0xFFFFFFFF < HELD_OUT_SHARE


if __name__ == "__main__":
    made = combinations(100000)
    print(len(COMMON), "common,", len(made), "combinations,", sum(held_out(s) for s in made), "of them held out")
    print(made[:60])
