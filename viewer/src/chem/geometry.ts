/** Distances, angles, rotations. Vectors are arrays of three numbers, Angstrom. */

import { inverse3, times3, completed, type Structure } from './structure'

export type Vec = [number, number, number]

export const sub = (a: Vec, b: Vec): Vec => [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
export const add = (a: Vec, b: Vec): Vec => [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
export const scale = (a: Vec, s: number): Vec => [a[0] * s, a[1] * s, a[2] * s]
export const dot = (a: Vec, b: Vec): number => a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
export const cross = (a: Vec, b: Vec): Vec => [
  a[1] * b[2] - a[2] * b[1],
  a[2] * b[0] - a[0] * b[2],
  a[0] * b[1] - a[1] * b[0],
]
export const norm = (a: Vec): number => Math.hypot(a[0], a[1], a[2])
export const unit = (a: Vec): Vec => scale(a, 1 / (norm(a) || 1))

export function at(positions: ArrayLike<number>, atom: number): Vec {
  return [positions[3 * atom]!, positions[3 * atom + 1]!, positions[3 * atom + 2]!]
}

/** The vector `d` or the shortest of its periodic images (exact for reduced cells). */
export function nearestImage(d: Vec, s: Pick<Structure, 'cell' | 'periodic'>): Vec {
  if (!s.cell || !s.periodic.some(Boolean)) return d
  const cell = completed(s.cell)
  const inverse = inverse3(cell)
  if (!inverse) return d
  const f = times3(d, inverse) as number[]
  for (let k = 0; k < 3; k++) if (s.periodic[k]) f[k] = f[k]! - Math.round(f[k]!)
  let best = times3(f, cell) as Vec
  const span = (k: number): number[] => (s.periodic[k] ? [-1, 0, 1] : [0])
  const base = best
  for (const a of span(0))
    for (const b of span(1))
      for (const c of span(2)) {
        const image = add(base, times3([a, b, c], cell) as Vec)
        if (dot(image, image) < dot(best, best) - 1e-12) best = image
      }
  return best
}

/** What two, three or four atoms say: a distance (Angstrom), an angle or a torsion (degrees). */
export interface Measure {
  kind: 'distance' | 'angle' | 'torsion'
  value: number
  text: string
  /** Where the atoms stand for this measure: nearest images, the first atom as it is. */
  points: Vec[]
}

export function measure(
  s: Pick<Structure, 'cell' | 'periodic'>,
  positions: ArrayLike<number>,
  atoms: readonly number[],
): Measure | null {
  if (atoms.length < 2 || atoms.length > 4) return null
  const points: Vec[] = [at(positions, atoms[0]!)]
  for (let i = 1; i < atoms.length; i++) {
    const d = nearestImage(sub(at(positions, atoms[i]!), at(positions, atoms[i - 1]!)), s)
    points.push(add(points[i - 1]!, d))
  }
  const [p, q, r, t] = points as [Vec, Vec, Vec, Vec]
  if (atoms.length === 2) {
    const value = norm(sub(q, p))
    return { kind: 'distance', value, text: `${value.toFixed(3)} Å`, points }
  }
  if (atoms.length === 3) {
    const value = angle(p, q, r)
    return { kind: 'angle', value, text: `${value.toFixed(1)}°`, points }
  }
  const value = torsion(p, q, r, t)
  return { kind: 'torsion', value, text: `${value.toFixed(1)}°`, points }
}

/** The angle p-q-r, degrees. */
export function angle(p: Vec, q: Vec, r: Vec): number {
  const u = sub(p, q)
  const v = sub(r, q)
  return (Math.atan2(norm(cross(u, v)), dot(u, v)) * 180) / Math.PI
}

/** The torsion p-q-r-t, degrees in (-180, 180]; IUPAC's sign. */
export function torsion(p: Vec, q: Vec, r: Vec, t: Vec): number {
  const b1 = sub(q, p)
  const b2 = sub(r, q)
  const b3 = sub(t, r)
  const n1 = cross(b1, b2)
  const n2 = cross(b2, b3)
  return (Math.atan2(dot(cross(n1, n2), unit(b2)), dot(n1, n2)) * 180) / Math.PI
}

/** `v` rotated by `radians` around the unit vector `axis` (Rodrigues). */
export function rotated(v: Vec, axis: Vec, radians: number): Vec {
  const c = Math.cos(radians)
  const s = Math.sin(radians)
  const k = dot(axis, v) * (1 - c)
  const w = cross(axis, v)
  return [v[0] * c + w[0] * s + axis[0] * k, v[1] * c + w[1] * s + axis[1] * k, v[2] * c + w[2] * s + axis[2] * k]
}

/** Rotates `atoms` around the axis from `from` to `to`, in place. */
export function rotateAtoms(
  positions: Float64Array,
  atoms: readonly number[],
  from: Vec,
  to: Vec,
  radians: number,
): void {
  const axis = unit(sub(to, from))
  for (const atom of atoms) {
    const p = add(from, rotated(sub(at(positions, atom), from), axis, radians))
    positions.set(p, 3 * atom)
  }
}

/** The direction in which one more neighbour finds most room at an atom whose neighbours lie in
 *  directions `bonds` (unit vectors): away from their sum, or along the tetrahedral or planar gap. */
export function freeDirection(bonds: readonly Vec[]): Vec {
  const sum = bonds.reduce<Vec>((a, b) => add(a, b), [0, 0, 0])
  if (bonds.length === 0) return [1, 0, 0]
  if (bonds.length === 1) {
    // The tetrahedral angle to the one neighbour.
    const b = unit(bonds[0]!)
    const helper: Vec = Math.abs(b[0]) < 0.8 ? [1, 0, 0] : [0, 1, 0]
    const side = unit(cross(b, helper))
    return unit(add(scale(b, -1 / 3), scale(side, Math.sqrt(8) / 3)))
  }
  if (bonds.length === 2) {
    // Out of the plane of the two, at the tetrahedral angle.
    const away = unit(scale(sum, -1))
    const normal = unit(cross(bonds[0]!, bonds[1]!))
    if (norm(sum) > 0.1) return unit(add(scale(away, 1 / Math.sqrt(3)), scale(normal, Math.sqrt(2 / 3))))
  }
  if (norm(sum) > 0.1) return unit(scale(sum, -1))
  const helper: Vec = Math.abs(bonds[0]![0]) < 0.8 ? [1, 0, 0] : [0, 1, 0]
  return unit(cross(bonds[0]!, helper))
}

/** The two axes of a symmetric 3x3 matrix with the largest eigenvalues, the largest first (Jacobi). */
export function principalAxes(matrix: readonly number[]): [Vec, Vec] {
  const m = [...matrix]
  const v = [1, 0, 0, 0, 1, 0, 0, 0, 1]
  for (let sweep = 0; sweep < 30; sweep++)
    for (const [p, q] of [[0, 1], [0, 2], [1, 2]] as const) {
      const off = m[3 * p + q]!
      if (Math.abs(off) < 1e-12) continue
      const theta = 0.5 * Math.atan2(2 * off, m[3 * q + q]! - m[3 * p + p]!)
      const c = Math.cos(theta)
      const s = Math.sin(theta)
      for (let k = 0; k < 3; k++) {
        const [a, b] = [m[3 * k + p]!, m[3 * k + q]!]
        m[3 * k + p] = c * a - s * b
        m[3 * k + q] = s * a + c * b
      }
      for (let k = 0; k < 3; k++) {
        const [a, b] = [m[3 * p + k]!, m[3 * q + k]!]
        m[3 * p + k] = c * a - s * b
        m[3 * q + k] = s * a + c * b
        const [x, y] = [v[3 * k + p]!, v[3 * k + q]!]
        v[3 * k + p] = c * x - s * y
        v[3 * k + q] = s * x + c * y
      }
    }
  const order = [0, 1, 2].sort((a, b) => m[4 * b]! - m[4 * a]!)
  const column = (k: number): Vec => [v[k]!, v[3 + k]!, v[6 + k]!]
  return [column(order[0]!), column(order[1]!)]
}
