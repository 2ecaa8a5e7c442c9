"""Molecules from graphs: whether they keep the rules of valency, as they are and after bonds too many are let go of.

Shapes   atoms (n, N) atomic numbers, 0 where there is none; bonds (n, N, N) of 0 to 3
Source   the rules are RDKit's; the correction: Zang, Wang 2020, "MoFlow" (arXiv 2006.10137), section 3.4, as used by Jo et
         al. 2022 (2202.02514): while an atom has too many bonds, the highest of them loses one
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ebbtide.core.errors import EbbError

_VALENCY = {6: 4, 7: 3, 8: 2, 9: 1}


class Validity(NamedTuple):
    """Shares of a set of molecules.

    plain       that keep the rules as they are
    corrected   that keep them after correction
    unique      of the corrected ones, different from one another
    """

    plain: float
    corrected: float
    unique: float


def validity(atoms: Tensor, bonds: Tensor) -> Validity:
    """How many molecules keep the rules. A nitrogen or oxygen with one bond too many is charged, as is usual.

    Raises EbbError where RDKit is not installed.
    """
    chem = _rdkit()
    plain = corrected = 0
    names = set()
    for kinds, orders in zip(atoms.tolist(), bonds.tolist(), strict=True):
        mol = _built(chem, kinds, orders)
        plain += _offender(chem, mol) is None and mol.GetNumAtoms() > 0
        mol = _corrected(chem, mol)
        if mol is not None and mol.GetNumAtoms() > 0:
            corrected += 1
            names.add(chem.MolToSmiles(mol))
    n = max(len(atoms), 1)
    return Validity(plain / n, corrected / n, len(names) / max(corrected, 1))


def _rdkit() -> Any:
    try:
        from rdkit import Chem, RDLogger
    except ImportError as error:
        raise EbbError("molecules are judged by RDKit: pip install 'ebbtide[molecules]'.") from error
    RDLogger.DisableLog("rdApp.*")
    return Chem


def _built(chem: Any, kinds: list[int], orders: list[list[float]]) -> Any:
    mol, place = chem.RWMol(), {}
    for j, kind in enumerate(kinds):
        if kind:
            place[j] = mol.AddAtom(chem.Atom(int(kind)))
    names = {1: chem.BondType.SINGLE, 2: chem.BondType.DOUBLE, 3: chem.BondType.TRIPLE}
    for i in place:
        for j in place:
            order = round(orders[i][j])
            if i < j and order:
                mol.AddBond(place[i], place[j], names[order])
    for atom in mol.GetAtoms():
        had = sum(int(b.GetBondTypeAsDouble()) for b in atom.GetBonds())
        if atom.GetAtomicNum() in (7, 8) and had - _VALENCY[atom.GetAtomicNum()] == 1:
            atom.SetFormalCharge(1)
    return mol


def _offender(chem: Any, mol: Any) -> int | None:
    """The first atom with too many bonds; -1 for another fault, None where there is none."""
    try:
        chem.SanitizeMol(chem.Mol(mol))
    except chem.AtomValenceException as error:
        return int(error.cause.GetAtomIdx())
    except ValueError:
        return -1
    return None


def _corrected(chem: Any, mol: Any) -> Any:
    names = {1: chem.BondType.SINGLE, 2: chem.BondType.DOUBLE}
    while (at := _offender(chem, mol)) is not None:
        if at < 0:
            return None
        bonds = sorted(mol.GetAtomWithIdx(at).GetBonds(), key=lambda b: -b.GetBondTypeAsDouble())
        if not bonds:
            return None
        i, j, order = bonds[0].GetBeginAtomIdx(), bonds[0].GetEndAtomIdx(), int(bonds[0].GetBondTypeAsDouble())
        mol.RemoveBond(i, j)
        if order > 1:
            mol.AddBond(i, j, names[order - 1])
    return mol
