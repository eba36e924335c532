/** CIF, of small molecules and crystals (core dictionary) and of macromolecules (mmCIF): the first
 *  data block that has atoms. Symmetry is applied, atoms on special positions are kept once. */

import { elementOfSymbol } from '../chem/elements'
import { cellOf, inverse3, MAX_ATOMS, structure, times3, type Structure } from '../chem/structure'
import { FormatError, numberOf } from './lines'

const FORMAT = 'CIF'

/** One data block: every item (lower case, dots as underscores) with its values. */
export type Block = Map<string, string[]>

interface Token {
  text: string
  /** Quoted values and text fields are never keywords. */
  quoted: boolean
  line: number
}

/** Splits into words by the rules of CIF 1.1: comments, quotes that end before white space, text
 *  fields between semicolons at the beginnings of lines. */
function* tokens(text: string): Generator<Token> {
  let i = 0
  let line = 1
  const n = text.length
  while (i < n) {
    const c = text[i]!
    if (c === '\n') {
      line++
      i++
    } else if (c === ' ' || c === '\t' || c === '\r') {
      i++
    } else if (c === '#') {
      while (i < n && text[i] !== '\n') i++
    } else if (c === ';' && (i === 0 || text[i - 1] === '\n')) {
      const end = text.indexOf('\n;', i)
      if (end < 0) throw new FormatError(FORMAT, 'a text field has no end', line)
      const body = text.slice(i + 1, end)
      yield { text: body, quoted: true, line }
      line += body.split('\n').length
      i = end + 2
    } else if (c === "'" || c === '"') {
      let end = i + 1
      while (end < n && text[end] !== '\n' && !(text[end] === c && /\s/.test(text[end + 1] ?? ' '))) end++
      if (text[end] !== c) throw new FormatError(FORMAT, 'a quote has no end', line)
      yield { text: text.slice(i + 1, end), quoted: true, line }
      i = end + 1
    } else {
      let end = i
      while (end < n && !/\s/.test(text[end]!)) end++
      yield { text: text.slice(i, end), quoted: false, line }
      i = end
    }
  }
}

export function parseCif(text: string): Block[] {
  const blocks: Block[] = []
  let block: Block | undefined
  let loop: { names: string[]; values: string[]; line: number } | undefined
  let item: string | undefined
  const key = (name: string): string => name.toLowerCase().replace('.', '_')
  const finish = (): void => {
    if (!loop || !block) return
    const width = loop.names.length
    if (width === 0 || loop.values.length % width !== 0)
      throw new FormatError(FORMAT, `a loop of ${width} columns has ${loop.values.length} values`, loop.line)
    loop.names.forEach((name, column) => {
      block!.set(name, loop!.values.filter((_, i) => i % width === column))
    })
    loop = undefined
  }
  for (const token of tokens(text)) {
    const word = token.text
    if (!token.quoted && /^data_/i.test(word)) {
      finish()
      item = undefined
      block = new Map()
      blocks.push(block)
    } else if (!token.quoted && /^loop_$/i.test(word)) {
      finish()
      loop = { names: [], values: [], line: token.line }
    } else if (!token.quoted && word.startsWith('_')) {
      if (loop && loop.values.length === 0) loop.names.push(key(word))
      else {
        finish()
        item = key(word)
      }
    } else if (!block) {
      throw new FormatError(FORMAT, 'it does not begin with data_', token.line)
    } else if (loop) {
      loop.values.push(word)
    } else if (item !== undefined) {
      block.set(item, [word])
      item = undefined
    } else if (!/^(save_|global_|stop_)/i.test(word)) {
      throw new FormatError(FORMAT, `“${word.slice(0, 30)}” belongs to no item`, token.line)
    }
  }
  finish()
  return blocks
}

/** A symmetry operation on fractional coordinates: 3x3 and translation, row-major 3x4. */
export function symmetryOperation(text: string): number[] {
  const rows = text.replace(/\s+/g, '').toLowerCase().split(',')
  if (rows.length !== 3) throw new FormatError(FORMAT, `“${text}” is no symmetry operation`)
  return rows.flatMap((row) => {
    const out = [0, 0, 0, 0]
    const term = /([+-]?)(?:(\d+\.?\d*|\.\d+)(?:\/(\d+))?\*?)?([xyz])?/gy
    let at = 0
    while (at < row.length) {
      term.lastIndex = at
      const found = term.exec(row)
      if (!found || found[0] === '' || (found[2] === undefined && found[4] === undefined))
        throw new FormatError(FORMAT, `“${text}” is no symmetry operation`)
      const value = (found[1] === '-' ? -1 : 1) * (found[2] === undefined ? 1 : Number(found[2]) / Number(found[3] ?? 1))
      out['xyz'.indexOf(found[4] ?? '') >= 0 && found[4] ? 'xyz'.indexOf(found[4]) : 3]! += value
      at = term.lastIndex
    }
    return out
  })
}

/** A number with its standard uncertainty in parentheses: 1.234(5). */
const measured = (word: string | undefined): number => numberOf((word ?? '').replace(/\(\d*\)?$/, ''))

export function readCif(text: string, name: string): Structure {
  const block = parseCif(text).find((b) => b.has('_atom_site_fract_x') || b.has('_atom_site_cartn_x'))
  if (!block) throw new FormatError(FORMAT, 'no atoms (_atom_site) in it')
  const one = (key: string): string | undefined => block.get(key)?.[0]
  const lengths = ['a', 'b', 'c'].map((k) => measured(one(`_cell_length_${k}`)))
  const angles = ['alpha', 'beta', 'gamma'].map((k) => measured(one(`_cell_angle_${k}`) ?? '90'))
  const hasCell = lengths.every((x) => x > 1) && angles.every(Number.isFinite)
  const cell = hasCell
    ? cellOf(lengths as [number, number, number], angles as [number, number, number])
    : null

  const mm = block.has('_atom_site_cartn_x') && !block.has('_atom_site_fract_x')
  const [px, py, pz] = ['x', 'y', 'z'].map((k) => block.get(`_atom_site_${mm ? 'cartn' : 'fract'}_${k}`) ?? [])
  const labels = block.get('_atom_site_type_symbol') ?? block.get('_atom_site_label') ?? []
  const models = block.get('_atom_site_pdbx_pdb_model_num')
  const alternates = block.get('_atom_site_label_alt_id')
  const disorder = block.get('_atom_site_disorder_group')
  const numbers: number[] = []
  const points: number[] = []
  const firstAlternate = new Map<string, string>()
  for (let i = 0; i < px!.length; i++) {
    if (models && models[i] !== models[0]) continue
    const alternate = alternates?.[i] ?? '.'
    if (alternate !== '.' && alternate !== '?') {
      const residue = `${block.get('_atom_site_label_asym_id')?.[i]} ${block.get('_atom_site_auth_seq_id')?.[i]}`
      if (!firstAlternate.has(residue)) firstAlternate.set(residue, alternate)
      if (firstAlternate.get(residue) !== alternate) continue
    }
    // Of disordered groups the major part.
    if (disorder && !['.', '?', '1', '0'].includes(disorder[i] ?? '.')) continue
    const p = [measured(px![i]), measured(py![i]), measured(pz![i])]
    // Atoms whose place is not known ("?") are left out, as other programs do.
    if (!p.every(Number.isFinite)) continue
    const symbol = /^[A-Za-z]{1,2}/.exec(labels[i] ?? '')?.[0] ?? ''
    const known = elementOfSymbol(symbol) ?? elementOfSymbol(symbol.slice(0, 1))
    if (!known) throw new FormatError(FORMAT, `“${labels[i] ?? ''}” is no element`)
    numbers.push(known.number)
    points.push(...p)
  }
  if (numbers.length === 0) throw new FormatError(FORMAT, 'no atom with coordinates')
  const id = one('_chemical_name_common') ?? one('_chemical_name_mineral') ?? one('_struct_title')
  const title = id && !['?', '.'].includes(id.trim()) ? id.trim().replace(/\s+/g, ' ').slice(0, 60) : name
  if (mm) return structure(title, numbers, points, { cell: null })
  if (!cell) throw new FormatError(FORMAT, 'fractional coordinates without a cell')
  return crystal(title, numbers, points, cell, operations(block))
}

function operations(block: Block): number[][] {
  const listed =
    block.get('_space_group_symop_operation_xyz') ??
    block.get('_symmetry_equiv_pos_as_xyz') ??
    block.get('_space_group_symop_operation_xyz_')
  if (listed && listed.length > 0) return listed.map(symmetryOperation)
  const group = (block.get('_space_group_name_h-m_alt') ?? block.get('_symmetry_space_group_name_h-m'))?.[0]
  if (group && !/^\s*(p\s*1|\?|\.)\s*$/i.test(group))
    throw new FormatError(FORMAT, `space group ${group} is named, but its operations are not listed`)
  return [[1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]]
}

function crystal(
  name: string,
  numbers: number[],
  points: number[],
  cell: Float64Array,
  symmetry: number[][],
): Structure {
  if (!inverse3(cell)) throw new FormatError(FORMAT, 'the cell has no volume')
  const outNumbers: number[] = []
  const outPositions: number[] = []
  const wrap = (x: number): number => {
    const f = x - Math.floor(x)
    return f > 1 - 1e-6 ? 0 : f
  }
  for (let i = 0; i < numbers.length; i++) {
    const images: number[][] = []
    for (const m of symmetry) {
      const p = [0, 1, 2].map((r) =>
        wrap(m[4 * r]! * points[3 * i]! + m[4 * r + 1]! * points[3 * i + 1]! + m[4 * r + 2]! * points[3 * i + 2]! + m[4 * r + 3]!),
      )
      // Two images within 0.05 Angstrom are one atom on a special position.
      const twin = images.some((q) => {
        const d = q.map((x, k) => x - p[k]! - Math.round(x - p[k]!))
        return Math.hypot(...(times3(d, cell) as number[])) < 0.05
      })
      if (!twin) images.push(p)
    }
    for (const p of images) {
      outNumbers.push(numbers[i]!)
      outPositions.push(...(times3(p, cell) as number[]))
    }
    if (outNumbers.length > MAX_ATOMS) throw new FormatError(FORMAT, `more than ${MAX_ATOMS} atoms`)
  }
  return structure(name, outNumbers, outPositions, { cell })
}
