/** What survives a reload of the tab. */

import { structure as makeStructure, type Structure } from './chem/structure'
import type { Memory } from './protocol/connection'

const SESSION = 'umaserve.session'
const STRUCTURE = 'umaserve.structure'
/** Larger structures come back from the server only. */
const MAX_KEPT_ATOMS = 20_000

function read(key: string): string {
  try {
    return sessionStorage.getItem(key) ?? ''
  } catch {
    return ''
  }
}

function write(key: string, value: string): void {
  try {
    if (value) sessionStorage.setItem(key, value)
    else sessionStorage.removeItem(key)
  } catch {
    // Full or forbidden: a reload begins anew.
  }
}

/** Per server path: several servers may stand behind one host. */
const scoped = (key: string): string => `${key}:${new URL('.', location.href).pathname}`

export const sessionMemory: Memory = {
  get: () => read(scoped(SESSION)),
  set: (id) => write(scoped(SESSION), id),
}

export function keepStructure(s: Structure): void {
  if (s.numbers.length === 0 || s.numbers.length > MAX_KEPT_ATOMS) {
    write(scoped(STRUCTURE), '')
    return
  }
  write(
    scoped(STRUCTURE),
    JSON.stringify({
      ...s,
      numbers: Array.from(s.numbers),
      positions: Array.from(s.positions),
      velocities: Array.from(s.velocities),
      cell: s.cell ? Array.from(s.cell) : null,
    }),
  )
}

export function keptStructure(): Structure | null {
  const text = read(scoped(STRUCTURE))
  if (!text) return null
  try {
    const raw = JSON.parse(text) as Record<keyof Structure, never>
    const numbers = raw.numbers as number[]
    const positions = raw.positions as number[]
    if (numbers.length === 0 || positions.length !== 3 * numbers.length) return null
    return makeStructure(String(raw.name), numbers, positions, {
      velocities: Float64Array.from(raw.velocities as number[]),
      cell: raw.cell ? Float64Array.from(raw.cell as number[]) : null,
      periodic: raw.periodic,
      charge: Number(raw.charge),
      spin: Number(raw.spin),
      task: String(raw.task),
    })
  } catch {
    return null
  }
}
