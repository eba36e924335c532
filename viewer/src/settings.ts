/** What the user has set: kept in this browser, checked when read. */

import { effect, signal, type Signal } from '@preact/signals'

const KEY = 'umaserve.settings'

function stored(): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(localStorage.getItem(KEY) ?? '{}')
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
  } catch {
    return {}
  }
}

const initial = stored()
const all: Record<string, Signal<unknown>> = {}

function setting<T>(name: string, fallback: T, valid: (value: unknown) => value is T): Signal<T> {
  const value = initial[name]
  const made = signal<T>(valid(value) ? value : fallback)
  all[name] = made as Signal<unknown>
  return made
}

const oneOf =
  <T extends string>(...choices: readonly T[]) =>
  (value: unknown): value is T =>
    choices.includes(value as T)
const between =
  (low: number, high: number) =>
  (value: unknown): value is number =>
    typeof value === 'number' && value >= low && value <= high
const isBoolean = (value: unknown): value is boolean => typeof value === 'boolean'

export const settings = {
  theme: setting('theme', 'auto', oneOf('auto', 'light', 'dark')),

  kind: setting('kind', 'md', oneOf('md', 'relax')),
  temperature: setting('temperature', 300, between(0, 1e5)),
  timestepFs: setting('timestepFs', 0.5, between(0.01, 100)),
  friction: setting('friction', 0.02, between(0, 100)),
  mdIntegrator: setting('mdIntegrator', 'langevin', oneOf('langevin', 'velocity_verlet')),
  relaxIntegrator: setting('relaxIntegrator', 'bfgs', oneOf('bfgs', 'lbfgs', 'fire')),
  maxStep: setting('maxStep', 0.2, between(0.001, 5)),
  fmax: setting('fmax', 0.02, between(0, 10)),
  stepsPerFrame: setting('stepsPerFrame', 1, between(1, 1000)),
  framesPerSecond: setting('framesPerSecond', 30, between(1, 60)),
  record: setting('record', true, isBoolean),
  detached: setting('detached', false, isBoolean),

  style: setting('style', 'ball-and-stick', oneOf('ball-and-stick', 'sticks', 'space-filling')),
  bonds: setting('bonds', true, isBoolean),
  cell: setting('cell', true, isBoolean),
  wrap: setting('wrap', false, isBoolean),
  forces: setting('forces', true, isBoolean),
  forceScale: setting('forceScale', 1, between(0.1, 20)),
  labels: setting('labels', 'none', oneOf('none', 'element', 'index')),
  depth: setting('depth', true, isBoolean),
  plotRange: setting('plotRange', 'all', oneOf('all', 'recent')),
}

effect(() => {
  const text = JSON.stringify(Object.fromEntries(Object.entries(all).map(([k, s]) => [k, s.value])))
  try {
    localStorage.setItem(KEY, text)
  } catch {
    // A browser without storage starts with the defaults next time.
  }
})
