/** PDB: coordinates of the first model, cell from CRYST1. Columns as in the wwPDB format 3.3. */

import { elementOfSymbol } from '../chem/elements'
import { cellOf, MAX_ATOMS, structure, type Structure } from '../chem/structure'
import { FormatError, linesOf, numberOf } from './lines'

const FORMAT = 'PDB'

export function readPdb(text: string, name: string): Structure {
  const lines = linesOf(text)
  const numbers: number[] = []
  const positions: number[] = []
  let cell: Float64Array | null = null
  let title = ''
  // Of alternate locations the first one of each residue is taken.
  const chosen = new Map<string, string>()
  for (const [i, line] of lines.entries()) {
    const record = line.slice(0, 6).trimEnd()
    if (record === 'ENDMDL') break
    if (record === 'TITLE' && !title) title = line.slice(10).trim()
    if (record === 'CRYST1') cell = crystal(line, i + 1)
    if (record !== 'ATOM' && record !== 'HETATM') continue
    const alternate = line[16] ?? ' '
    if (alternate !== ' ') {
      const residue = line.slice(21, 27)
      if (!chosen.has(residue)) chosen.set(residue, alternate)
      if (chosen.get(residue) !== alternate) continue
    }
    const xyz = [line.slice(30, 38), line.slice(38, 46), line.slice(46, 54)].map(numberOf)
    if (!xyz.every(Number.isFinite)) throw new FormatError(FORMAT, 'no coordinates in columns 31 to 54', i + 1)
    const known = elementOfAtom(line, record === 'HETATM')
    if (known === undefined) throw new FormatError(FORMAT, `the element of “${line.slice(12, 16)}” is unclear`, i + 1)
    numbers.push(known)
    positions.push(...xyz)
    if (numbers.length > MAX_ATOMS) throw new FormatError(FORMAT, `more than ${MAX_ATOMS} atoms`, i + 1)
  }
  if (numbers.length === 0) throw new FormatError(FORMAT, 'no ATOM or HETATM in it')
  return structure(title ? sentence(title) : name, numbers, positions, { cell })
}

function sentence(title: string): string {
  const short = title.length > 60 ? title.slice(0, 57) + '…' : title
  return short === short.toUpperCase() ? short[0] + short.slice(1).toLowerCase() : short
}

function crystal(line: string, number: number): Float64Array | null {
  const values = [6, 15, 24].map((at) => numberOf(line.slice(at, at + 9)))
  const angles = [33, 40, 47].map((at) => numberOf(line.slice(at, at + 7)))
  if (![...values, ...angles].every(Number.isFinite)) throw new FormatError(FORMAT, 'CRYST1 is not understood', number)
  // 1 x 1 x 1 says "no crystal".
  if (values.every((x) => x <= 1)) return null
  return cellOf(values as [number, number, number], angles as [number, number, number])
}

/** Columns 77 and 78; where they are empty, the name: right-justified in 13 and 14. */
function elementOfAtom(line: string, het: boolean): number | undefined {
  const given = elementOfSymbol(line.slice(76, 78))
  if (given) return given.number
  const field = line.slice(12, 16)
  const letters = field.slice(0, 2).replace(/[^A-Za-z]/g, '')
  const two = field[0] === ' ' || /\d/.test(field[0] ?? ' ') ? undefined : elementOfSymbol(letters)
  // "CA" of a residue is a carbon whatever its column says; "HG11" a hydrogen.
  if (two && letters.length === 2 && (het || !/^(C|H|N|O)/i.test(letters))) return two.number
  const one = elementOfSymbol(field.replace(/[^A-Za-z]/g, '').slice(0, 1))
  return one?.number ?? two?.number
}
