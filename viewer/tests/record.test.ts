import { describe, expect, it } from 'vitest'
import { structure } from '../src/chem/structure'
import { History } from '../src/record/history'
import { Series } from '../src/record/series'
import { Timeline, type TimelineFrame } from '../src/record/timeline'
import { recordLabel } from '../src/record/label'

function frame(step: number, atoms = 2, kind: TimelineFrame['kind'] = 'md'): Omit<TimelineFrame, 'id'> {
  return {
    kind,
    step,
    timeFs: step,
    energy: -step,
    temperature: undefined,
    kinetic: undefined,
    fmax: undefined,
    positions: new Float32Array(3 * atoms).fill(step),
    velocities: new Float32Array(3 * atoms),
    forces: new Float32Array(3 * atoms),
    cell: null,
  }
}

describe('timeline', () => {
  it('keeps the last frames under their ids', () => {
    const t = new Timeline(10, 1e9)
    for (let i = 0; i < 25; i++) t.push(frame(i))
    expect(t.length).toBe(10)
    expect(t.range).toEqual({ first: 15, last: 24 })
    expect(t.get(14)).toBeUndefined()
    expect(t.get(15)!.step).toBe(15)
    expect([...t].map((f) => f.step)).toEqual([15, 16, 17, 18, 19, 20, 21, 22, 23, 24])
  })
  it('is bounded in bytes, whatever the number of atoms', () => {
    const t = new Timeline(1000, 100_000)
    for (let i = 0; i < 200; i++) t.push(frame(i, 100))
    expect(t.length).toBe(Math.floor(100_000 / (3600 + 200)))
    t.push(frame(200, 1_000_000))
    expect(t.length).toBe(1)
  })
  it('forgets the end, by frame and by step', () => {
    const t = new Timeline(10, 1e9)
    for (let i = 0; i < 8; i++) t.push(frame(i))
    t.cutAfter(5)
    expect(t.last!.step).toBe(5)
    t.cutAfterStep(3)
    expect(t.last!.step).toBe(3)
    expect(t.push(frame(9)).id).toBe(4)
    expect([...t].map((f) => f.step)).toEqual([0, 1, 2, 3, 9])
  })
})

describe('series', () => {
  it('keeps every sample while there is room', () => {
    const s = new Series(2, 8)
    for (let i = 0; i < 8; i++) s.push(i, [i, 1 - i])
    expect([...s.data(1).mean]).toEqual([1, 0, -1, -2, -3, -4, -5, -6])
    expect(s.samplesPerBucket).toBe(1)
  })
  it('stays bounded and keeps mean and extremes for ever', () => {
    const s = new Series(1, 64)
    let sum = 0
    const n = 1_000_000
    for (let i = 0; i < n; i++) {
      const y = i === 123_456 ? 1000 : Math.sin(i)
      sum += y
      s.push(i, [y])
    }
    expect(s.length).toBeLessThanOrEqual(64)
    const { x, mean, low, high } = s.data(0)
    expect(Math.max(...high)).toBe(1000)
    expect(Math.min(...low)).toBeCloseTo(-1, 5)
    for (let i = 1; i < x.length; i++) expect(x[i]!).toBeGreaterThan(x[i - 1]!)
    const whole = mean.slice(0, -1).reduce((a, b) => a + b, 0) * s.samplesPerBucket
    expect(whole).toBeCloseTo(sum, -2)
    for (let i = 0; i < mean.length; i++) {
      expect(mean[i]!).toBeGreaterThanOrEqual(low[i]!)
      expect(mean[i]!).toBeLessThanOrEqual(high[i]!)
    }
  })
  it('has gaps where there is no value', () => {
    const s = new Series(1, 4)
    for (const y of [1, NaN, 3, 4, 5, NaN]) s.push(s.length, [y])
    const { mean } = s.data(0)
    expect(mean[0]).toBe(1)
    expect([...mean].every((v) => !Number.isNaN(v))).toBe(true)
  })
  it('is cut at a moment', () => {
    const s = new Series(1, 100)
    for (let i = 0; i < 50; i++) s.push(i, [i])
    s.cutAfter(19.5)
    expect(s.length).toBe(20)
    s.push(20, [7])
    expect(s.data(0).mean[20]).toBe(7)
  })
})

describe('history', () => {
  const at = (x: number): ReturnType<typeof structure> => structure(String(x), [1], [x, 0, 0])
  it('undoes and redoes', () => {
    const h = new History()
    h.remember('a', at(0))
    h.remember('b', at(1))
    expect(h.undoLabel).toBe('b')
    expect(h.undo(at(2))!.positions[0]).toBe(1)
    expect(h.redoLabel).toBe('b')
    expect(h.undo(at(1))!.positions[0]).toBe(0)
    expect(h.undo(at(0))).toBeUndefined()
    expect(h.redo(at(0))!.positions[0]).toBe(1)
    expect(h.redo(at(1))!.positions[0]).toBe(2)
    expect(h.redo(at(2))).toBeUndefined()
  })
  it('forgets what was undone after a new edit', () => {
    const h = new History()
    h.remember('a', at(0))
    h.undo(at(1))
    h.remember('b', at(0))
    expect(h.redo(at(5))).toBeUndefined()
  })
  it('keeps copies, not what is changed later', () => {
    const h = new History()
    const s = at(3)
    h.remember('a', s)
    s.positions[0] = 9
    expect(h.undo(s)!.positions[0]).toBe(3)
  })
  it('is bounded', () => {
    const h = new History(3)
    for (let i = 0; i < 10; i++) h.remember(String(i), at(i))
    const seen: number[] = []
    for (let s = h.undo(at(10)); s; s = h.undo(s)) seen.push(s.positions[0]!)
    expect(seen).toEqual([9, 8, 7])
  })
})

describe('labels of recordings', () => {
  it.each(['Ethanol', '../../etc', 'Aspirin (α)', '', 'a'.repeat(300)])('of %j are accepted by the server', (name) => {
    expect(recordLabel(name)).toMatch(/^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/)
  })
})
