/** Growing instanced geometries: one draw call for all atoms, one for all sticks, one for arrows. */

import {
  BufferAttribute,
  DynamicDrawUsage,
  InstancedBufferAttribute,
  InstancedBufferGeometry,
  Mesh,
  type RawShaderMaterial,
} from 'three'

export class Instances {
  readonly mesh: Mesh
  private readonly geometry: InstancedBufferGeometry
  private readonly attributes: { name: string; width: number; attribute: InstancedBufferAttribute }[]
  private capacity = 0

  constructor(
    shape: { positions: number[]; indices: number[] },
    widths: Record<string, number>,
    material: RawShaderMaterial,
  ) {
    this.geometry = new InstancedBufferGeometry()
    this.geometry.setAttribute('position', new BufferAttribute(new Float32Array(shape.positions), 3))
    this.geometry.setIndex(shape.indices)
    this.attributes = Object.entries(widths).map(([name, width]) => ({
      name,
      width,
      attribute: new InstancedBufferAttribute(new Float32Array(0), width),
    }))
    this.mesh = new Mesh(this.geometry, material)
    this.mesh.frustumCulled = false
    this.reserve(64)
    this.count = 0
  }

  /** Makes room for `n` instances; what was in the arrays is lost if they grow. */
  reserve(n: number): void {
    if (n <= this.capacity) return
    this.capacity = Math.max(n, 2 * this.capacity)
    this.geometry.dispose()
    for (const entry of this.attributes) {
      entry.attribute = new InstancedBufferAttribute(new Float32Array(entry.width * this.capacity), entry.width)
      entry.attribute.setUsage(DynamicDrawUsage)
      this.geometry.setAttribute(entry.name, entry.attribute)
    }
  }

  array(name: string): Float32Array {
    return this.attributes.find((entry) => entry.name === name)!.attribute.array as Float32Array
  }

  set count(n: number) {
    this.geometry.instanceCount = n
    this.mesh.visible = n > 0
    for (const entry of this.attributes) {
      entry.attribute.clearUpdateRanges()
      entry.attribute.addUpdateRange(0, n * entry.width)
      entry.attribute.needsUpdate = n > 0
    }
  }

  get count(): number {
    return this.geometry.instanceCount
  }
}

/** A square that faces the eye. */
export const QUAD = { positions: [-1, -1, 0, 1, -1, 0, 1, 1, 0, -1, 1, 0], indices: [0, 1, 2, 0, 2, 3] }

/** An open tube of radius 1 around y, from 0 to 1. */
export function tube(sides: number): { positions: number[]; indices: number[] } {
  return rings(sides, [
    [1, 0],
    [1, 1],
  ])
}

/** An arrow: shaft of radius 1, head of radius 2.4; y as the shader expects it. */
export function arrow(sides: number): { positions: number[]; indices: number[] } {
  return rings(sides, [
    [1, 0],
    [1, 1],
    [2.4, 1],
    [0.01, 2],
  ])
}

function rings(sides: number, profile: [radius: number, y: number][]): { positions: number[]; indices: number[] } {
  const positions: number[] = []
  const indices: number[] = []
  profile.forEach(([radius, y]) => {
    for (let i = 0; i < sides; i++) {
      const a = (2 * Math.PI * i) / sides
      positions.push(radius * Math.cos(a), y, radius * Math.sin(a))
    }
  })
  for (let r = 0; r + 1 < profile.length; r++)
    for (let i = 0; i < sides; i++) {
      const j = (i + 1) % sides
      const [a, b, c, d] = [r * sides + i, r * sides + j, (r + 1) * sides + i, (r + 1) * sides + j]
      indices.push(a, c, b, b, c, d)
    }
  return { positions, indices }
}
