import { describe, expect, it } from 'vitest'
import { adjacency, findBonds, sideOfBond } from '../src/chem/bonds'
import { angle, freeDirection, measure, norm, rotateAtoms, at, principalAxes, torsion, unit, dot, type Vec } from '../src/chem/geometry'
import { cellOf, formulaText, impossibleSpin, multiplet, repeated, selectAtoms, structure, withAtom } from '../src/chem/structure'
import { temperature, thermalVelocities } from '../src/chem/velocities'
import { element } from '../src/chem/elements'
import { EXAMPLES } from '../src/examples'

function generator(seed: number): () => number {
  let state = seed
  return () => (state = (state * 48271) % 2147483647) / 2147483647
}

/** All bonds by trying all pairs and images. */
function slowBonds(s: ReturnType<typeof structure>): string[] {
  const found: string[] = []
  const n = s.numbers.length
  const images = s.cell ? (s.numbers.length > 100 ? [-1, 0, 1] : [-2, -1, 0, 1, 2]) : [0]
  for (let i = 0; i < n; i++)
    for (let j = i; j < n; j++)
      for (const a of images)
        for (const b of images)
          for (const c of images) {
            if (i === j && (a < 0 || (a === 0 && (b < 0 || (b === 0 && c <= 0))))) continue
            const d = [0, 1, 2].map(
              (k) =>
                s.positions[3 * j + k]! - s.positions[3 * i + k]! + (s.cell ? a * s.cell[k]! + b * s.cell[3 + k]! + c * s.cell[6 + k]! : 0),
            )
            const reach = 1.2 * (element(s.numbers[i]!).covalent + element(s.numbers[j]!).covalent)
            if (Math.hypot(...d) <= reach) found.push(`${i} ${j} ${d.map((x) => (x + 0).toFixed(4)).join(' ')}`)
          }
  return found.map((x) => x.replace(/-0\.0000/g, '0.0000')).sort()
}

function fastBonds(s: ReturnType<typeof structure>): string[] {
  const bonds = findBonds(s, s.positions)
  const found: string[] = []
  for (let k = 0; k < bonds.count; k++) {
    const [i, j] = [bonds.first[k]!, bonds.second[k]!]
    const d = [0, 1, 2].map((c) => s.positions[3 * j + c]! + bonds.shift[3 * k + c]! - s.positions[3 * i + c]!)
    found.push(`${i} ${j} ${d.map((x) => (x + 0).toFixed(4)).join(' ')}`)
  }
  return found.map((x) => x.replace(/-0\.0000/g, '0.0000')).sort()
}

describe('bonds', () => {
  it('of every example are those of all pairs and images', () => {
    for (const example of EXAMPLES) {
      const s = example.make()
      if (s.numbers.length > 64) continue
      expect(fastBonds(s), example.name).toEqual(slowBonds(s))
    }
  })
  it('of a large oblique random system, wrapped or not, are those of all pairs', () => {
    const random = generator(5)
    const cell = cellOf([21, 20, 22], [75, 80, 95])
    const n = 300
    const positions = Array.from({ length: n }, () => {
      const f = [random(), random(), random()]
      return [0, 1, 2].map((k) => f[0]! * cell[k]! + f[1]! * cell[3 + k]! + f[2]! * cell[6 + k]!)
    }).flat()
    const s = structure('x', new Array(n).fill(6), positions, { cell })
    const close = (list: string[]): string[] => list.filter((b) => !/ 0\.0000 0\.0000 0\.0000$/.test(b))
    const fast = close(fastBonds(s))
    expect(fast.length).toBeGreaterThan(10)
    expect(fast).toEqual(close(slowBonds(s)))
    // The same atoms some cells away have the same bonds.
    for (let i = 0; i < n; i += 3) for (let k = 0; k < 3; k++) s.positions[3 * i + k]! += 2 * cell[k]! - 3 * cell[6 + k]!
    expect(close(fastBonds(s))).toEqual(fast)
  })
  it('of a large open system are those of all pairs', () => {
    const random = generator(9)
    const s = structure('x', new Array(200).fill(6), Array.from({ length: 600 }, () => 9 * random()))
    expect(fastBonds(s)).toEqual(slowBonds(s))
  })
  it('hold a little longer than they form', () => {
    const pair = (d: number): ReturnType<typeof structure> => structure('x', [6, 6], [0, 0, 0, d, 0, 0])
    const near = pair(1.5)
    const far = pair(1.95)
    const formed = findBonds(near, near.positions)
    expect(formed.count).toBe(1)
    expect(findBonds(far, far.positions).count).toBe(0)
    expect(findBonds(far, far.positions, formed).count).toBe(1)
    const broken = pair(2.2)
    expect(findBonds(broken, broken.positions, formed).count).toBe(0)
  })
  it('have two sides, except in rings', () => {
    const s = EXAMPLES.find((e) => e.name === 'Ethanol')!.make()
    const neighbours = adjacency(s.numbers.length, findBonds(s, s.positions))
    const [c1, c2] = [...s.numbers].flatMap((z, i) => (z === 6 ? [i] : []))
    const side = sideOfBond(neighbours, c1!, c2!)!
    expect(side).toContain(c2)
    expect(side).not.toContain(c1)
    expect(side.length + sideOfBond(neighbours, c2!, c1!)!.length).toBe(9)
    const ring = EXAMPLES.find((e) => e.name === 'Benzene')!.make()
    const around = adjacency(12, findBonds(ring, ring.positions))
    expect(sideOfBond(around, 0, around[0]!.find((j) => ring.numbers[j] === 6)!)).toBeNull()
  })
})

describe('geometry', () => {
  it('measures as IUPAC says', () => {
    expect(angle([1, 0, 0], [0, 0, 0], [0, 1, 0])).toBeCloseTo(90)
    expect(torsion([1, 0, 0], [0, 0, 0], [0, 0, 1], [1, 0, 1])).toBeCloseTo(0)
    expect(Math.abs(torsion([1, 0, 0], [0, 0, 0], [0, 0, 1], [-1, 0, 1]))).toBeCloseTo(180)
    // Looking from the second to the third atom, the last one is 60 degrees clockwise of the first.
    const rad = Math.PI / 3
    expect(torsion([1, 0, 0], [0, 0, 0], [0, 0, 1], [Math.cos(rad), Math.sin(rad), 1])).toBeCloseTo(60)
  })
  it('measures to the nearest image', () => {
    const s = { cell: cellOf([10, 10, 10], [90, 90, 60]), periodic: [true, true, true] as [boolean, boolean, boolean] }
    const m = measure(s, [0.5, 0, 0, 9.5, 0, 0], [0, 1])!
    expect(m.value).toBeCloseTo(1)
    const open = measure({ ...s, periodic: [false, true, true] }, [0.5, 0, 0, 9.5, 0, 0], [0, 1])!
    expect(open.value).toBeCloseTo(9)
  })
  it('rotates a side by exactly the angle and leaves lengths alone', () => {
    const positions = Float64Array.of(1, 0, 0, 0, 0, 0, 0, 0, 1.5, 0.9, 0, 1.8)
    const before = torsion(at(positions, 0), at(positions, 1), at(positions, 2), at(positions, 3))
    rotateAtoms(positions, [2, 3], at(positions, 1), at(positions, 2), (40 * Math.PI) / 180)
    const after = torsion(at(positions, 0), at(positions, 1), at(positions, 2), at(positions, 3))
    expect(after - before).toBeCloseTo(40)
    expect(norm(at(positions, 2))).toBeCloseTo(1.5)
  })
  it('finds the axes of an extended body', () => {
    // Spread 9, 4, 1 along three known orthogonal directions.
    const axes = ([[1, 2, 2], [2, 1, -2], [2, -2, 1]] as Vec[]).map(unit)
    const m = new Array<number>(9).fill(0)
    ;[4, 9, 1].forEach((w, i) => {
      for (let a = 0; a < 3; a++) for (let b = 0; b < 3; b++) m[3 * a + b]! += w * axes[i]![a]! * axes[i]![b]!
    })
    const [first, second] = principalAxes(m)
    expect(Math.abs(dot(first, axes[1]!))).toBeCloseTo(1)
    expect(Math.abs(dot(second, axes[0]!))).toBeCloseTo(1)
  })
  it('finds room for one more neighbour', () => {
    const tetrahedron = ([[1, 1, 1], [1, -1, -1], [-1, 1, -1]] as Vec[]).map(unit)
    expect(dot(freeDirection(tetrahedron), unit([-1, -1, 1]))).toBeCloseTo(1)
    for (const bonds of [[], tetrahedron.slice(0, 1), tetrahedron.slice(0, 2), [[1, 0, 0], [-1, 0, 0]] as Vec[]]) {
      const d = freeDirection(bonds)
      expect(norm(d)).toBeCloseTo(1)
      for (const b of bonds) expect(dot(d, b)).toBeLessThan(0.2)
    }
  })
})

describe('structures', () => {
  const water = structure('w', [8, 1, 1], [0, 0, 0, 1, 0, 0, 0, 1, 0])
  it('grow, shrink and repeat', () => {
    expect([...withAtom(water, 6, [1, 2, 3]).numbers]).toEqual([8, 1, 1, 6])
    expect([...selectAtoms(water, [2]).positions]).toEqual([0, 1, 0])
    const cell = cellOf([5, 5, 5], [90, 90, 90])
    const big = repeated(structure('w', water.numbers, water.positions, { cell }), [2, 1, 3])
    expect(big.numbers.length).toBe(18)
    expect([...big.cell!]).toEqual([10, 0, 0, 0, 5, 0, 0, 0, 15])
    expect(() => repeated(water, [2, 2, 2])).toThrow('cell')
  })
  it('have formulas in Hill order', () => {
    expect(formulaText([1, 8, 6, 1, 17, 35])).toBe('CH2BrClO')
    expect(formulaText([8, 1, 1])).toBe('H2O')
  })
  it('know which spins their electrons can have', () => {
    const methyl = [6, 1, 1, 1]
    expect(impossibleSpin(methyl, 0, 1)).toBe(9)
    expect(impossibleSpin(methyl, 0, 2)).toBeUndefined()
    expect(impossibleSpin(methyl, 1, 1)).toBeUndefined()
    expect(impossibleSpin(methyl, -1, 2)).toBe(10)
    expect(impossibleSpin([8, 8], 0, 3)).toBeUndefined()
    // Nothing given, nothing wrong; but no atom has more unpaired electrons than electrons.
    expect(impossibleSpin(methyl, 0, 0)).toBeUndefined()
    expect(impossibleSpin([1], 0, 4)).toBe(1)
    expect(multiplet(2)).toBe('a doublet')
    expect(multiplet(9)).toBe('a state of multiplicity 9')
  })
})

describe('thermal velocities', () => {
  it('have the temperature, no drift and no rotation', () => {
    const s = EXAMPLES.find((e) => e.name === 'Caffeine')!.make()
    const v = thermalVelocities(s.numbers, s.positions, 300, true, generator(3))
    const masses = [...s.numbers].map((z) => element(z).mass)
    expect(temperature(masses, v)).toBeCloseTo(300, 6)
    for (let k = 0; k < 3; k++) expect(masses.reduce((p, m, i) => p + m * v[3 * i + k]!, 0)).toBeCloseTo(0, 8)
    const l = [0, 0, 0]
    masses.forEach((m, i) => {
      const [x, y, z] = at(s.positions, i)
      const [a, b, c] = at(v, i)
      l[0]! += m * (y * c - z * b)
      l[1]! += m * (z * a - x * c)
      l[2]! += m * (x * b - y * a)
    })
    for (const component of l) expect(component).toBeCloseTo(0, 6)
  })
  it('of one atom or at zero kelvin are finite', () => {
    expect([...thermalVelocities([8], [0, 0, 0], 300, true, generator(1))].every(Number.isFinite)).toBe(true)
    expect([...thermalVelocities([1, 1], [0, 0, 0, 0, 0, 0.7], 300, true, generator(1))].every(Number.isFinite)).toBe(true)
    expect([...thermalVelocities([8, 1], [0, 0, 0, 1, 0, 0], 0, true)]).toEqual(new Array(6).fill(0))
  })
})
