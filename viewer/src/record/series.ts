/** Numbers over time for plots, in bounded memory for any length of a run.
 *
 * Samples are gathered into buckets that keep mean, smallest and largest value. When the buckets are
 * used up, neighbours are merged and a bucket takes twice as many samples from then on: an hour and a
 * week cost the same, and no spike is lost from the envelope. */

export class Series {
  readonly columns: number
  private readonly capacity: number
  private size = 0
  /** Samples per bucket. */
  private width = 1
  /** Samples in the last bucket. */
  private filled = 0
  private x: Float64Array
  private mean: Float64Array[]
  private low: Float64Array[]
  private high: Float64Array[]

  /** `capacity` buckets (even) of `columns` values. */
  constructor(columns: number, capacity = 2048) {
    this.columns = columns
    this.capacity = Math.max(4, capacity - (capacity % 2))
    const make = (): Float64Array[] => Array.from({ length: columns }, () => new Float64Array(this.capacity))
    this.x = new Float64Array(this.capacity)
    this.mean = make()
    this.low = make()
    this.high = make()
  }

  get length(): number {
    return this.size
  }

  get samplesPerBucket(): number {
    return this.width
  }

  /** One sample; a value that is not finite is a gap (NaN) if the bucket has no other. */
  push(x: number, values: readonly number[]): void {
    if (this.size === 0 || this.filled >= this.width) {
      if (this.size === this.capacity) this.halve()
      // After halving the last bucket may have room.
      if (this.size === 0 || this.filled >= this.width) {
        this.x[this.size] = x
        for (let c = 0; c < this.columns; c++) {
          const value = finite(values[c])
          this.mean[c]![this.size] = value
          this.low[c]![this.size] = value
          this.high[c]![this.size] = value
        }
        this.size++
        this.filled = 1
        return
      }
    }
    const i = this.size - 1
    const n = this.filled
    this.x[i] = (this.x[i]! * n + x) / (n + 1)
    for (let c = 0; c < this.columns; c++) {
      const value = finite(values[c])
      if (Number.isNaN(value)) continue
      const mean = this.mean[c]![i]!
      this.mean[c]![i] = Number.isNaN(mean) ? value : (mean * n + value) / (n + 1)
      this.low[c]![i] = Number.isNaN(mean) ? value : Math.min(this.low[c]![i]!, value)
      this.high[c]![i] = Number.isNaN(mean) ? value : Math.max(this.high[c]![i]!, value)
    }
    this.filled++
  }

  private halve(): void {
    const half = this.capacity / 2
    for (let i = 0; i < half; i++) {
      const a = 2 * i
      const b = a + 1
      // The last bucket may be fuller or emptier than the others only when it is not complete.
      this.x[i] = (this.x[a]! + this.x[b]!) / 2
      for (let c = 0; c < this.columns; c++) {
        const [mean, low, high] = [this.mean[c]!, this.low[c]!, this.high[c]!]
        mean[i] = pick(mean[a]!, mean[b]!, (u, v) => (u + v) / 2)
        low[i] = pick(low[a]!, low[b]!, Math.min)
        high[i] = pick(high[a]!, high[b]!, Math.max)
      }
    }
    this.size = half
    this.width *= 2
    this.filled = this.width
  }

  clear(): void {
    this.size = 0
    this.width = 1
    this.filled = 0
  }

  /** Removes what lies beyond `x`. */
  cutAfter(x: number): void {
    while (this.size > 0 && this.x[this.size - 1]! > x) this.size--
    this.filled = this.width
  }

  /** x, mean, low and high of a column; views that are valid until the next push. */
  data(column: number): { x: Float64Array; mean: Float64Array; low: Float64Array; high: Float64Array } {
    return {
      x: this.x.subarray(0, this.size),
      mean: this.mean[column]!.subarray(0, this.size),
      low: this.low[column]!.subarray(0, this.size),
      high: this.high[column]!.subarray(0, this.size),
    }
  }
}

const finite = (value: number | undefined): number => (value !== undefined && Number.isFinite(value) ? value : NaN)

function pick(a: number, b: number, join: (a: number, b: number) => number): number {
  if (Number.isNaN(a)) return b
  return Number.isNaN(b) ? a : join(a, b)
}
