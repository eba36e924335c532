/** Which atoms are drawn as bonded: by distance and covalent radii, across cell boundaries too. */

import { element } from './elements'
import { completed, inverse3, times3, type Structure } from './structure'

/** Bonds as flat lists. Bond k joins atom `first[k]` with the image of `second[k]` that is displaced
 *  by `shift[3k..3k+2]` (Angstrom; zeros within the cell). */
export interface Bonds {
  count: number
  first: Uint32Array
  second: Uint32Array
  shift: Float64Array
}

/** A bond is formed below `FORM` and kept below `KEEP` times the sum of the covalent radii, so that
 *  a vibrating bond does not flicker. */
export const FORM = 1.2
export const KEEP = 1.35

export const NO_BONDS: Bonds = {
  count: 0,
  first: new Uint32Array(0),
  second: new Uint32Array(0),
  shift: new Float64Array(0),
}

/** Bonds of `numbers` at `positions`. `before`: the bonds of the same atoms a moment ago. */
export function findBonds(
  s: Pick<Structure, 'numbers' | 'cell' | 'periodic'>,
  positions: ArrayLike<number>,
  before: Bonds = NO_BONDS,
): Bonds {
  const n = s.numbers.length
  if (n === 0) return NO_BONDS
  const radii = Float64Array.from(s.numbers, (z) => element(z).covalent)
  let largest = 0
  for (const r of radii) largest = Math.max(largest, r)
  const reach = 2 * KEEP * largest

  const kept = new Set<number>()
  for (let k = 0; k < before.count; k++) {
    const i = before.first[k]!
    const j = before.second[k]!
    if (i < n && j < n) kept.add(Math.min(i, j) * n + Math.max(i, j))
  }

  const first: number[] = []
  const second: number[] = []
  const shift: number[] = []
  const accept = (i: number, j: number, d2: number): boolean => {
    const sum = radii[i]! + radii[j]!
    if (d2 > (KEEP * sum) ** 2 || d2 < 0.01) return false
    return d2 <= (FORM * sum) ** 2 || kept.has(Math.min(i, j) * n + Math.max(i, j))
  }

  const cell = s.cell && s.periodic.some(Boolean) ? completed(s.cell) : null
  const inverse = cell ? inverse3(cell) : null
  if (cell && inverse) {
    periodicPairs(s.periodic, positions, n, cell, inverse, reach, (i, j, dx, dy, dz, d2) => {
      if (accept(i, j, d2)) {
        first.push(i)
        second.push(j)
        shift.push(dx, dy, dz)
      }
    })
  } else {
    openPairs(positions, n, reach, (i, j, d2) => {
      if (accept(i, j, d2)) {
        first.push(i)
        second.push(j)
        shift.push(0, 0, 0)
      }
    })
  }
  return {
    count: first.length,
    first: Uint32Array.from(first),
    second: Uint32Array.from(second),
    shift: Float64Array.from(shift),
  }
}

/** All pairs i < j closer than `reach`, with a grid of boxes. */
function openPairs(
  p: ArrayLike<number>,
  n: number,
  reach: number,
  visit: (i: number, j: number, d2: number) => void,
): void {
  const limit = reach * reach
  const pair = (i: number, j: number): void => {
    const x = p[3 * i]! - p[3 * j]!
    const y = p[3 * i + 1]! - p[3 * j + 1]!
    const z = p[3 * i + 2]! - p[3 * j + 2]!
    const d2 = x * x + y * y + z * z
    if (d2 <= limit) visit(Math.min(i, j), Math.max(i, j), d2)
  }
  if (n < 64) {
    for (let i = 0; i < n; i++) for (let j = i + 1; j < n; j++) pair(i, j)
    return
  }
  const low = [Infinity, Infinity, Infinity]
  for (let i = 0; i < 3 * n; i++) low[i % 3] = Math.min(low[i % 3]!, p[i]!)
  const boxes = new Map<number, number[]>()
  const SPAN = 4096
  const key = (x: number, y: number, z: number): number => (x * SPAN + y) * SPAN + z
  const index = new Int32Array(3 * n)
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < 3; k++) index[3 * i + k] = Math.min(SPAN - 2, Math.floor((p[3 * i + k]! - low[k]!) / reach)) + 1
    const at = key(index[3 * i]!, index[3 * i + 1]!, index[3 * i + 2]!)
    const box = boxes.get(at)
    if (box) box.push(i)
    else boxes.set(at, [i])
  }
  for (let i = 0; i < n; i++)
    for (let dx = -1; dx <= 1; dx++)
      for (let dy = -1; dy <= 1; dy++)
        for (let dz = -1; dz <= 1; dz++) {
          const box = boxes.get(key(index[3 * i]! + dx, index[3 * i + 1]! + dy, index[3 * i + 2]! + dz))
          if (box) for (const j of box) if (j > i) pair(i, j)
        }
}

/** All pairs closer than `reach` with periodic images, each once: the image vector of `j` is given. */
function periodicPairs(
  periodic: readonly boolean[],
  p: ArrayLike<number>,
  n: number,
  cell: Float64Array,
  inverse: Float64Array,
  reach: number,
  visit: (i: number, j: number, dx: number, dy: number, dz: number, d2: number) => void,
): void {
  // Distance between opposite faces, along each lattice vector: 1 / |column of the inverse|.
  const images = [0, 0, 0]
  const heights = [0, 0, 0]
  for (let k = 0; k < 3; k++) {
    heights[k] = 1 / Math.hypot(inverse[k]!, inverse[3 + k]!, inverse[6 + k]!)
    images[k] = periodic[k] ? Math.ceil(reach / heights[k]!) : 0
  }
  // Fractional coordinates, wrapped where periodic; `wrap` remembers by how many cells.
  const frac = new Float64Array(3 * n)
  const wrap = new Float64Array(3 * n)
  const f = [0, 0, 0]
  for (let i = 0; i < n; i++) {
    times3([p[3 * i]!, p[3 * i + 1]!, p[3 * i + 2]!], inverse, f)
    for (let k = 0; k < 3; k++) {
      const cells = periodic[k] ? Math.floor(f[k]!) : 0
      wrap[3 * i + k] = cells
      frac[3 * i + k] = f[k]! - cells
    }
  }
  const limit = reach * reach
  const pair = (i: number, j: number, a: number, b: number, c: number): void => {
    const u = frac[3 * j]! - frac[3 * i]! + a
    const v = frac[3 * j + 1]! - frac[3 * i + 1]! + b
    const w = frac[3 * j + 2]! - frac[3 * i + 2]! + c
    const x = u * cell[0]! + v * cell[3]! + w * cell[6]!
    const y = u * cell[1]! + v * cell[4]! + w * cell[7]!
    const z = u * cell[2]! + v * cell[5]! + w * cell[8]!
    const d2 = x * x + y * y + z * z
    if (d2 > limit || d2 < 1e-12) return
    const s = a + wrap[3 * i]! - wrap[3 * j]!
    const t = b + wrap[3 * i + 1]! - wrap[3 * j + 1]!
    const r = c + wrap[3 * i + 2]! - wrap[3 * j + 2]!
    const dx = s * cell[0]! + t * cell[3]! + r * cell[6]!
    const dy = s * cell[1]! + t * cell[4]! + r * cell[7]!
    const dz = s * cell[2]! + t * cell[5]! + r * cell[8]!
    visit(i, j, dx, dy, dz, d2)
  }
  // Each pair once: j > i with any image, and i with its own images in one half space.
  const bins = heights.map((h, k) => (periodic[k] && h >= 3 * reach ? Math.min(64, Math.floor(h / reach)) : 1))
  if (n < 64 || bins.every((b) => b === 1)) {
    for (let i = 0; i < n; i++)
      for (let j = i; j < n; j++)
        for (let a = -images[0]!; a <= images[0]!; a++)
          for (let b = -images[1]!; b <= images[1]!; b++)
            for (let c = -images[2]!; c <= images[2]!; c++) {
              if (i === j && (a < 0 || (a === 0 && (b < 0 || (b === 0 && c <= 0))))) continue
              pair(i, j, a, b, c)
            }
    return
  }
  const box: number[][] = Array.from({ length: bins[0]! * bins[1]! * bins[2]! }, () => [])
  const bin = (i: number, k: number): number =>
    Math.min(bins[k]! - 1, Math.max(0, Math.floor(frac[3 * i + k]! * bins[k]!)))
  for (let i = 0; i < n; i++)
    box[(bin(i, 0) * bins[1]! + bin(i, 1)) * bins[2]! + bin(i, 2)]!.push(i)
  // Neighbour boxes along each direction, with the lattice shift that leads there.
  const span = (k: number, at: number): [number, number][] => {
    const m = bins[k]!
    if (m === 1) {
      const all: [number, number][] = []
      for (let s = -images[k]!; s <= images[k]!; s++) all.push([0, s])
      return all
    }
    return [-1, 0, 1].map((d) => {
      const raw = at + d
      return raw < 0 ? [m - 1, -1] : raw >= m ? [0, 1] : [raw, 0]
    })
  }
  for (let x = 0; x < bins[0]!; x++)
    for (let y = 0; y < bins[1]!; y++)
      for (let z = 0; z < bins[2]!; z++) {
        const here = box[(x * bins[1]! + y) * bins[2]! + z]!
        if (here.length === 0) continue
        for (const [nx, a] of span(0, x))
          for (const [ny, b] of span(1, y))
            for (const [nz, c] of span(2, z)) {
              const there = box[(nx * bins[1]! + ny) * bins[2]! + nz]!
              for (const i of here)
                for (const j of there) {
                  if (j < i) continue
                  if (i === j && (a < 0 || (a === 0 && (b < 0 || (b === 0 && c <= 0))))) continue
                  pair(i, j, a, b, c)
                }
            }
      }
}

/** The bonded neighbours of every atom (images count as the atom itself). */
export function adjacency(n: number, bonds: Bonds): number[][] {
  const neighbours: number[][] = Array.from({ length: n }, () => [])
  for (let k = 0; k < bonds.count; k++) {
    const i = bonds.first[k]!
    const j = bonds.second[k]!
    if (i === j) continue
    neighbours[i]!.push(j)
    neighbours[j]!.push(i)
  }
  return neighbours
}

/** The atoms on `b`'s side of the bond a-b; null if a ring or a lattice joins the two sides. */
export function sideOfBond(neighbours: readonly number[][], a: number, b: number): number[] | null {
  const seen = new Set([b])
  const queue = [b]
  while (queue.length > 0) {
    const atom = queue.pop()!
    for (const next of neighbours[atom]!) {
      if (next === a) {
        if (atom === b) continue
        return null
      }
      if (!seen.has(next)) {
        seen.add(next)
        queue.push(next)
      }
    }
  }
  return [...seen]
}
