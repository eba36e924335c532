/** XYZ and extended XYZ (ASE's dialect): one frame in, frames out. */

import { element, elementOfSymbol } from '../chem/elements'
import { MAX_ATOMS, structure, type Structure } from '../chem/structure'
import { FormatError, linesOf, numberOf } from './lines'

const FORMAT = 'XYZ'

/** Words of an extended XYZ comment: key=value, key="several values", bare key = true. */
export function commentWords(comment: string): Map<string, string> {
  const words = new Map<string, string>()
  const pattern = /([A-Za-z_][\w-]*)\s*(?:=\s*(?:"([^"]*)"|'([^']*)'|\{([^}]*)\}|\[([^\]]*)\]|(\S+)))?/gy
  let at = 0
  while (at < comment.length) {
    pattern.lastIndex = at
    const found = pattern.exec(comment)
    if (!found) {
      at++
      continue
    }
    const value = found[2] ?? found[3] ?? found[4] ?? found[5] ?? found[6] ?? 'T'
    words.set(found[1]!, value)
    at = pattern.lastIndex
  }
  return words
}

interface Column {
  kind: string
  from: number
  count: number
}

/** Column layout of `Properties=species:S:1:pos:R:3:...`; the default is symbol and position. */
function columns(properties: string | undefined): Map<string, Column> {
  const parts = (properties ?? 'species:S:1:pos:R:3').split(':')
  const found = new Map<string, Column>()
  let from = 0
  for (let i = 0; i + 2 < parts.length; i += 3) {
    const count = Number(parts[i + 2])
    if (!Number.isInteger(count) || count < 1)
      throw new FormatError(FORMAT, `Properties=${properties} is not understood`, 2)
    found.set(parts[i]!, { kind: parts[i + 1]!, from, count })
    from += count
  }
  return found
}

const flag = (word: string): boolean => /^(t|true|1)$/i.test(word)

/** The last frame of a file (the newest, where there are several). */
export function readXyz(text: string, name: string): Structure {
  const lines = linesOf(text)
  let start = 0
  let last = -1
  while (start < lines.length && lines[start]!.trim() !== '') {
    const count = Number(lines[start]!.trim().split(/\s+/)[0])
    if (!Number.isInteger(count) || count < 0)
      throw new FormatError(FORMAT, `the number of atoms is expected, not “${lines[start]!.slice(0, 40)}”`, start + 1)
    if (count > MAX_ATOMS) throw new FormatError(FORMAT, `${count} atoms are more than ${MAX_ATOMS}`, start + 1)
    if (start + 2 + count > lines.length)
      throw new FormatError(FORMAT, `the file ends before ${count} atoms`, lines.length)
    last = start
    start += count + 2
  }
  if (last < 0) throw new FormatError(FORMAT, 'no frame in it')
  return readFrame(lines, last, name)
}

function readFrame(lines: string[], start: number, name: string): Structure {
  const count = Number(lines[start]!.trim().split(/\s+/)[0])
  const comment = lines[start + 1] ?? ''
  const words = commentWords(comment)
  const extended = words.has('Properties') || words.has('Lattice')
  const layout = columns(words.get('Properties'))
  const pos = layout.get('pos')
  const species = layout.get('species') ?? layout.get('symbols')
  const z = layout.get('Z') ?? layout.get('numbers')
  if (!pos || pos.count !== 3 || !(species || z))
    throw new FormatError(FORMAT, 'Properties must have species and pos', start + 2)
  // ASE calls momenta "momenta"; velocities in its own unit go as "velo" or "velocities".
  const velocity = layout.get('velo') ?? layout.get('velocities')
  const momenta = layout.get('momenta')

  const numbers: number[] = []
  const positions = new Float64Array(3 * count)
  const velocities = new Float64Array(3 * count)
  for (let i = 0; i < count; i++) {
    const at = start + 2 + i
    const row = lines[at]!.trim().split(/\s+/)
    const symbol = row[species?.from ?? z!.from] ?? ''
    // A plain file may hold atomic numbers in place of symbols.
    const known = /^\d+$/.test(symbol) ? element(Number(symbol)) : elementOfSymbol(symbol.replace(/\d+$/, ''))
    if (!known || known.number === 0) throw new FormatError(FORMAT, `“${symbol}” is no element`, at + 1)
    numbers.push(known.number)
    for (let k = 0; k < 3; k++) {
      const value = numberOf(row[pos.from + k] ?? '')
      if (!Number.isFinite(value))
        throw new FormatError(FORMAT, `“${row[pos.from + k] ?? ''}” is no coordinate`, at + 1)
      positions[3 * i + k] = value
      const source = velocity ?? momenta
      if (source) {
        const v = numberOf(row[source.from + k] ?? '')
        velocities[3 * i + k] = Number.isFinite(v) ? v / (velocity ? 1 : known.mass) : 0
      }
    }
  }

  let cell: Float64Array | null = null
  let periodic: [boolean, boolean, boolean] = [false, false, false]
  const lattice = words.get('Lattice')
  if (lattice) {
    const values = lattice.trim().split(/[\s,]+/).map(numberOf)
    if (values.length !== 9 || !values.every(Number.isFinite))
      throw new FormatError(FORMAT, 'Lattice needs nine numbers', start + 2)
    cell = Float64Array.from(values)
    const pbc = words.get('pbc')?.trim().split(/[\s,]+/)
    periodic = pbc?.length === 3 ? [flag(pbc[0]!), flag(pbc[1]!), flag(pbc[2]!)] : [true, true, true]
    if (!periodic.some(Boolean)) cell = null
  }
  const integer = (key: string): number | undefined => {
    const value = numberOf(words.get(key) ?? '')
    return Number.isInteger(value) ? value : undefined
  }
  return structure(words.get('name') ?? name, numbers, positions, {
    velocities,
    cell,
    periodic,
    charge: integer('charge') ?? 0,
    spin: integer('spin') ?? integer('spin_multiplicity') ?? 0,
    task: extended ? (words.get('task') ?? '') : '',
  })
}

/** One frame for a file. Forces in eV/Angstrom, energy in eV. */
export interface WrittenFrame {
  structure: Pick<Structure, 'name' | 'numbers' | 'cell' | 'periodic' | 'charge' | 'spin' | 'task'>
  positions: ArrayLike<number>
  velocities?: ArrayLike<number> | undefined
  forces?: ArrayLike<number> | undefined
  energy?: number | undefined
  step?: number | undefined
  timeFs?: number | undefined
}

/** Extended XYZ as ASE reads it; velocities as momenta, which is what ASE understands. */
export function writeExtxyz(frame: WrittenFrame): string {
  const { structure: s } = frame
  const n = s.numbers.length
  const words: string[] = []
  if (s.cell) words.push(`Lattice="${Array.from(s.cell, (x) => fixed(x)).join(' ')}"`)
  let properties = 'species:S:1:pos:R:3'
  const moving = frame.velocities && Array.from(frame.velocities).some((v) => v !== 0)
  if (moving) properties += ':momenta:R:3'
  if (frame.forces) properties += ':forces:R:3'
  words.push(`Properties=${properties}`)
  if (frame.energy !== undefined) words.push(`energy=${frame.energy}`)
  words.push(`pbc="${s.periodic.map((p) => (p ? 'T' : 'F')).join(' ')}"`)
  words.push(`charge=${s.charge}`)
  if (s.spin > 0) words.push(`spin=${s.spin}`)
  if (s.task) words.push(`task=${s.task}`)
  if (frame.step !== undefined) words.push(`step=${frame.step}`)
  if (frame.timeFs !== undefined) words.push(`time_fs=${frame.timeFs}`)
  const lines = [String(n), words.join(' ')]
  for (let i = 0; i < n; i++) {
    const e = element(s.numbers[i]!)
    const row = [e.symbol.padEnd(2)]
    for (let k = 0; k < 3; k++) row.push(fixed(frame.positions[3 * i + k]!))
    if (moving) for (let k = 0; k < 3; k++) row.push(fixed(frame.velocities![3 * i + k]! * e.mass))
    if (frame.forces) for (let k = 0; k < 3; k++) row.push(fixed(frame.forces[3 * i + k]!))
    lines.push(row.join(' '))
  }
  return lines.join('\n') + '\n'
}

/** Plain XYZ. */
export function writeXyz(frame: WrittenFrame): string {
  const { structure: s } = frame
  const energy = frame.energy === undefined ? '' : ` energy ${frame.energy} eV`
  const lines = [String(s.numbers.length), `${s.name}${energy}`.replace(/[\r\n=]/g, ' ')]
  for (let i = 0; i < s.numbers.length; i++) {
    const row = [element(s.numbers[i]!).symbol.padEnd(2)]
    for (let k = 0; k < 3; k++) row.push(fixed(frame.positions[3 * i + k]!))
    lines.push(row.join(' '))
  }
  return lines.join('\n') + '\n'
}

function fixed(x: number): string {
  return x.toFixed(8).padStart(15)
}
