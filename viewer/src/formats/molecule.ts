/** What openchemlib does for the page: SMILES with 3D conformers, mol and sdf files. Runs in a
 *  worker (see chemistry.worker.ts): a conformer search can take seconds. */

import { ConformerGenerator, ForceFieldMMFF94, Molecule, SDFileParser } from 'openchemlib'
import { MAX_ATOMS, structure, type Structure } from '../chem/structure'
import { FormatError } from './lines'

/** A conformer of a SMILES string: hydrogens added, torsions from crystal statistics, MMFF94s. */
export function readSmiles(smiles: string): Structure {
  const text = smiles.trim()
  let molecule: Molecule
  try {
    molecule = Molecule.fromSmiles(text)
  } catch (error) {
    throw new FormatError('SMILES', `“${text.slice(0, 60)}” is not understood (${reason(error)})`)
  }
  if (molecule.getAllAtoms() === 0) throw new FormatError('SMILES', 'there is no atom in it')
  const made = conformer(molecule)
  if (!made) throw new FormatError('SMILES', `no 3D arrangement of “${text.slice(0, 60)}” was found`)
  return ofMolecule(made, text.length <= 40 ? text : 'Molecule')
}

function conformer(molecule: Molecule): Molecule | null {
  // One atom has no torsions to search.
  if (molecule.getAllAtoms() === 1) {
    molecule.addImplicitHydrogens()
    if (molecule.getAllAtoms() === 1) return molecule
  }
  const made = new ConformerGenerator(42).getOneConformerAsMolecule(molecule)
  if (!made) return null
  try {
    new ForceFieldMMFF94(made, 'MMFF94s').minimise({ maxIts: 2000 })
  } catch {
    // Elements without MMFF94 parameters keep the conformer as it is; the server relaxes it.
  }
  return made
}

/** A mol file or the first entry of an sdf, V2000 or V3000. Flat drawings get a conformer. */
export function readMol(text: string, name: string): Structure {
  const first = text.includes('$$$$') ? firstEntry(text) : text
  let molecule: Molecule
  try {
    molecule = Molecule.fromMolfile(first)
  } catch (error) {
    throw new FormatError('MOL', reason(error))
  }
  const n = molecule.getAllAtoms()
  if (n === 0) throw new FormatError('MOL', 'no atoms in it')
  if (n > MAX_ATOMS) throw new FormatError('MOL', `${n} atoms are more than ${MAX_ATOMS}`)
  let flat = true
  for (let i = 0; i < n && flat; i++) flat = Math.abs(molecule.getAtomZ(i)) < 1e-4
  const title = first.split(/\r\n|\n|\r/)[0]?.trim() || name
  if (flat && n > 2) {
    const made = conformer(molecule)
    if (!made) throw new FormatError('MOL', 'a flat drawing for which no 3D arrangement was found')
    return ofMolecule(made, title)
  }
  return ofMolecule(molecule, title)
}

function firstEntry(text: string): string {
  const parser = new SDFileParser(text, [])
  if (!parser.next()) throw new FormatError('SDF', 'no entry in it')
  return parser.getNextMolFile()
}

function ofMolecule(molecule: Molecule, name: string): Structure {
  const numbers: number[] = []
  const positions: number[] = []
  let charge = 0
  let radicals = 0
  for (let i = 0; i < molecule.getAllAtoms(); i++) {
    const z = molecule.getAtomicNo(i)
    if (z < 1 || z > 118) throw new FormatError('MOL', `atom ${i + 1} is no element`)
    numbers.push(z)
    // openchemlib's molecules have y and z turned against those of the file.
    positions.push(molecule.getAtomX(i), -molecule.getAtomY(i), -molecule.getAtomZ(i))
    charge += molecule.getAtomCharge(i)
    const radical = molecule.getAtomRadical(i)
    if (radical === Molecule.cAtomRadicalStateD) radicals += 1
    else if (radical === Molecule.cAtomRadicalStateT) radicals += 2
  }
  return structure(name, numbers, positions, { charge, spin: radicals > 0 ? radicals + 1 : 0 })
}

function reason(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error)
  return text.replace(/^(java\.\S+:?|Error:)\s*/, '').slice(0, 200) || 'not understood'
}
