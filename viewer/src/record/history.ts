/** Undo and redo: whole structures, bounded in number and memory. */

import { copyOf, type Structure } from '../chem/structure'

interface Entry {
  /** What undoing it takes back: "Add atom". */
  label: string
  structure: Structure
}

export class History {
  private past: Entry[] = []
  private future: Entry[] = []

  constructor(
    private readonly maxEntries = 200,
    private readonly maxBytes = 128 << 20,
  ) {}

  /** Remembers `before`, the structure that an edit called `label` is about to change. */
  remember(label: string, before: Structure): void {
    this.past.push({ label, structure: copyOf(before) })
    this.future = []
    let bytes = this.past.reduce((sum, e) => sum + bytesOf(e.structure), 0)
    while (this.past.length > 1 && (this.past.length > this.maxEntries || bytes > this.maxBytes))
      bytes -= bytesOf(this.past.shift()!.structure)
  }

  /** The structure before the last edit; `now` is kept for redo. */
  undo(now: Structure): Structure | undefined {
    const entry = this.past.pop()
    if (!entry) return undefined
    this.future.push({ label: entry.label, structure: copyOf(now) })
    return entry.structure
  }

  redo(now: Structure): Structure | undefined {
    const entry = this.future.pop()
    if (!entry) return undefined
    this.past.push({ label: entry.label, structure: copyOf(now) })
    return entry.structure
  }

  get undoLabel(): string | undefined {
    return this.past.at(-1)?.label
  }

  get redoLabel(): string | undefined {
    return this.future.at(-1)?.label
  }
}

function bytesOf(s: Structure): number {
  return 8 * (s.positions.length + s.velocities.length) + s.numbers.length + 200
}
