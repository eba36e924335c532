/** The last frames, bounded in memory. */

export interface TimelineFrame {
  /** Rises by one per frame and is never used again. */
  readonly id: number
  readonly kind: 'md' | 'relax' | 'idle'
  readonly step: number
  readonly timeFs: number
  readonly energy: number
  readonly temperature: number | undefined
  readonly kinetic: number | undefined
  readonly fmax: number | undefined
  /** 3N each, single precision: a picture and a point to go on from. */
  readonly positions: Float32Array
  readonly velocities: Float32Array
  readonly forces: Float32Array
  readonly cell: Float64Array | null
}

const OVERHEAD_BYTES = 200

/** A ring of frames. Frames of one timeline have the same atoms. */
export class Timeline {
  private frames: (TimelineFrame | undefined)[]
  private head = 0
  private count = 0
  private nextId = 0

  /** At most `maxFrames` frames and `maxBytes` bytes (of at least one frame). */
  constructor(
    private readonly maxFrames: number,
    private readonly maxBytes: number,
  ) {
    this.frames = new Array<TimelineFrame | undefined>(maxFrames)
  }

  get length(): number {
    return this.count
  }

  /** Ids of the oldest and the newest frame; undefined without frames. */
  get range(): { first: number; last: number } | undefined {
    return this.count === 0 ? undefined : { first: this.nextId - this.count, last: this.nextId - 1 }
  }

  push(frame: Omit<TimelineFrame, 'id'>): TimelineFrame {
    const bytes = 4 * (frame.positions.length + frame.velocities.length + frame.forces.length) + OVERHEAD_BYTES
    const fit = Math.max(1, Math.min(this.maxFrames, Math.floor(this.maxBytes / bytes)))
    while (this.count >= fit) {
      this.frames[this.head] = undefined
      this.head = (this.head + 1) % this.maxFrames
      this.count--
    }
    const kept: TimelineFrame = { ...frame, id: this.nextId++ }
    this.frames[(this.head + this.count) % this.maxFrames] = kept
    this.count++
    return kept
  }

  get(id: number): TimelineFrame | undefined {
    const offset = id - (this.nextId - this.count)
    if (offset < 0 || offset >= this.count) return undefined
    return this.frames[(this.head + offset) % this.maxFrames]
  }

  get last(): TimelineFrame | undefined {
    return this.get(this.nextId - 1)
  }

  /** Forgets all frames after `id`. */
  cutAfter(id: number): void {
    while (this.count > 0 && this.nextId - 1 > id) {
      this.nextId--
      this.count--
      this.frames[(this.head + this.count) % this.maxFrames] = undefined
    }
  }

  /** Forgets all simulated frames beyond a step: a server that restarted does them again. */
  cutAfterStep(step: number): void {
    while (this.last && this.last.kind !== 'idle' && this.last.step > step) this.cutAfter(this.last.id - 1)
  }

  clear(): void {
    this.frames = new Array<TimelineFrame | undefined>(this.maxFrames)
    this.head = 0
    this.count = 0
  }

  *[Symbol.iterator](): Iterator<TimelineFrame> {
    for (let i = 0; i < this.count; i++) yield this.frames[(this.head + i) % this.maxFrames]!
  }
}
