/** Velocities of a bath, in Angstrom / (ASE time unit) = sqrt(eV/dalton). */

import { element } from './elements'
import { cross, type Vec } from './geometry'
import { inverse3 } from './structure'

/** Boltzmann's constant, eV/K (CODATA 2014, as ASE uses it). */
export const KB = 8.6173303e-5

/** One ASE time unit in femtoseconds. */
export const ASE_TIME_FS = 10.18050571

/** A standard normal number (Box and Muller). */
function normal(random: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random())
}

/** Maxwell-Boltzmann velocities at `kelvin`, without drift and, for a molecule that is alone, without
 *  rotation; scaled so that 2 Ekin / (3 N kB) is exactly `kelvin`. */
export function thermalVelocities(
  numbers: ArrayLike<number>,
  positions: ArrayLike<number>,
  kelvin: number,
  isolated: boolean,
  random: () => number = Math.random,
): Float64Array {
  const n = numbers.length
  const v = new Float64Array(3 * n)
  if (n === 0 || kelvin <= 0) return v
  const masses = Array.from(numbers, (z) => element(z).mass)
  for (let i = 0; i < n; i++) {
    const width = Math.sqrt((KB * kelvin) / masses[i]!)
    for (let k = 0; k < 3; k++) v[3 * i + k] = width * normal(random)
  }
  if (n > 1) removeDrift(masses, v)
  if (isolated && n > 2) removeRotation(masses, positions, v)
  const now = temperature(masses, v)
  if (now > 0) {
    const factor = Math.sqrt(kelvin / now)
    for (let i = 0; i < v.length; i++) v[i] = v[i]! * factor
  }
  return v
}

/** 2 Ekin / (3 N kB), kelvin. */
export function temperature(masses: readonly number[], v: ArrayLike<number>): number {
  let twice = 0
  for (let i = 0; i < v.length; i++) twice += masses[Math.floor(i / 3)]! * v[i]! * v[i]!
  return masses.length > 0 ? twice / (3 * masses.length * KB) : 0
}

function removeDrift(masses: readonly number[], v: Float64Array): void {
  const total = masses.reduce((a, b) => a + b, 0)
  for (let k = 0; k < 3; k++) {
    let p = 0
    for (let i = 0; i < masses.length; i++) p += masses[i]! * v[3 * i + k]!
    for (let i = 0; i < masses.length; i++) v[3 * i + k]! -= p / total
  }
}

function removeRotation(masses: readonly number[], positions: ArrayLike<number>, v: Float64Array): void {
  const total = masses.reduce((a, b) => a + b, 0)
  const centre: Vec = [0, 0, 0]
  for (let i = 0; i < masses.length; i++)
    for (let k = 0; k < 3; k++) centre[k]! += (masses[i]! * positions[3 * i + k]!) / total
  const inertia = new Float64Array(9)
  const momentum: Vec = [0, 0, 0]
  const arm = (i: number): Vec => [
    positions[3 * i]! - centre[0],
    positions[3 * i + 1]! - centre[1],
    positions[3 * i + 2]! - centre[2],
  ]
  for (let i = 0; i < masses.length; i++) {
    const r = arm(i)
    const m = masses[i]!
    const l = cross(r, [v[3 * i]!, v[3 * i + 1]!, v[3 * i + 2]!])
    const r2 = r[0] * r[0] + r[1] * r[1] + r[2] * r[2]
    for (let a = 0; a < 3; a++) {
      momentum[a]! += m * l[a]!
      for (let b = 0; b < 3; b++) inertia[3 * a + b]! += m * ((a === b ? r2 : 0) - r[a]! * r[b]!)
    }
  }
  // A linear molecule has no inverse; a little ridge leaves its axis alone.
  const ridge = 1e-9 * (inertia[0]! + inertia[4]! + inertia[8]!)
  for (const d of [0, 4, 8]) inertia[d]! += ridge
  const inverse = inverse3(inertia)
  if (!inverse) return
  const omega: Vec = [0, 0, 0]
  for (let a = 0; a < 3; a++) for (let b = 0; b < 3; b++) omega[a]! += inverse[3 * a + b]! * momentum[b]!
  for (let i = 0; i < masses.length; i++) {
    const w = cross(omega, arm(i))
    for (let k = 0; k < 3; k++) v[3 * i + k]! -= w[k]!
  }
}
