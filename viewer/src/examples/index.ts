/** Structures to begin with. */

import { repeated, structure, type Structure } from '../chem/structure'
import { elementOfSymbol } from '../chem/elements'
import { linesOf } from '../formats/lines'
import { readXyz } from '../formats/xyz'
import molecules from './molecules.extxyz?raw'

export interface Example {
  name: string
  group: string
  hint: string
  make: () => Structure
}

/** Frames of a file, as texts. */
function split(text: string): string[] {
  const lines = linesOf(text)
  const frames: string[] = []
  for (let i = 0; i < lines.length && lines[i]!.trim() !== ''; ) {
    const count = Number(lines[i])
    frames.push(lines.slice(i, i + count + 2).join('\n'))
    i += count + 2
  }
  return frames
}

const texts = new Map(split(molecules).map((frame) => [/name="([^"]*)"/.exec(frame)![1]!, frame]))

function molecule(group: string, name: string, hint: string, change: Partial<Structure> = {}): Example {
  return { name, group, hint, make: () => ({ ...readXyz(texts.get(name)!, name), ...change }) }
}

/** A cubic crystal from its conventional cell; fractional coordinates. */
function cubic(
  name: string,
  hint: string,
  a: number,
  sites: readonly [symbol: string, x: number, y: number, z: number][],
  repeats: number,
): Example {
  return {
    name,
    group: 'Crystals',
    hint,
    make: () => {
      const cell = Float64Array.of(a, 0, 0, 0, a, 0, 0, 0, a)
      const unit = structure(
        name,
        sites.map(([symbol]) => elementOfSymbol(symbol)!.number),
        sites.flatMap(([, x, y, z]) => [a * x, a * y, a * z]),
        { cell },
      )
      return repeated(unit, [repeats, repeats, repeats])
    },
  }
}

const FCC: readonly [number, number, number][] = [
  [0, 0, 0],
  [0, 0.5, 0.5],
  [0.5, 0, 0.5],
  [0.5, 0.5, 0],
]
type Site = [symbol: string, x: number, y: number, z: number]
const fcc = (symbol: string, dx = 0, dy = 0, dz = 0): Site[] =>
  FCC.map(([x, y, z]) => [symbol, x + dx, y + dy, z + dz])

export const EXAMPLES: readonly Example[] = [
  molecule('Small molecules', 'Water', 'H₂O'),
  molecule('Small molecules', 'Ammonia', 'NH₃, inverts'),
  molecule('Small molecules', 'Methane', 'CH₄'),
  molecule('Small molecules', 'Formaldehyde', 'CH₂O'),
  molecule('Small molecules', 'Ethanol', 'C₂H₆O'),
  molecule('Small molecules', 'Acetic acid', 'C₂H₄O₂'),
  molecule('Small molecules', 'Benzene', 'C₆H₆'),
  molecule('Small molecules', 'Glycine', 'an amino acid'),
  molecule('Charges and spins', 'Hydronium', 'charge +1'),
  molecule('Charges and spins', 'Acetate', 'charge −1'),
  molecule('Charges and spins', 'Methyl radical', 'doublet'),
  molecule('Larger molecules', 'Alanine dipeptide', 'rotate its backbone'),
  molecule('Larger molecules', 'Aspirin', '21 atoms'),
  molecule('Larger molecules', 'Caffeine', '24 atoms'),
  molecule('Larger molecules', 'Glucose', '24 atoms'),
  molecule('Larger molecules', 'Ibuprofen', '33 atoms'),
  molecule('Larger molecules', 'Dodecane', 'a floppy chain'),
  molecule('Larger molecules', 'Cholesterol', '74 atoms'),
  molecule('Clusters', '10 waters', 'a droplet'),
  molecule('Clusters', '64 waters', '192 atoms'),
  cubic('Copper', 'fcc, 32 atoms', 3.615, fcc('Cu'), 2),
  cubic('Sodium chloride', 'rock salt, 64 atoms', 5.64, [...fcc('Na'), ...fcc('Cl', 0.5, 0, 0)], 2),
  cubic('Silicon', 'diamond, 64 atoms', 5.431, [...fcc('Si'), ...fcc('Si', 0.25, 0.25, 0.25)], 2),
  cubic('Aluminium', 'fcc, 108 atoms', 4.05, fcc('Al'), 3),
]

/** What a new visitor sees. */
export function firstExample(): Structure {
  return EXAMPLES.find((e) => e.name === 'Ethanol')!.make()
}
