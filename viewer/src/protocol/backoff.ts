/** How long to wait before the next attempt to connect. */
export class Backoff {
  private attempts = 0

  constructor(
    private readonly firstMs = 500,
    private readonly maxMs = 5000,
    private readonly random: () => number = Math.random,
  ) {}

  /** The next wait, ms: grows from the first to the largest, with a spread so that many pages do not
   *  come back at the same moment. */
  next(): number {
    const wait = Math.min(this.maxMs, this.firstMs * 1.7 ** this.attempts)
    this.attempts++
    return Math.round(wait * (0.75 + 0.5 * this.random()))
  }

  get count(): number {
    return this.attempts
  }

  reset(): void {
    this.attempts = 0
  }
}
