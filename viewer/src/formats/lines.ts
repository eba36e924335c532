/** What all readers of structure files share. */

/** A file that cannot be used; the message says why in words for the user. */
export class FormatError extends Error {
  constructor(format: string, reason: string, line?: number) {
    super(line === undefined ? `${format}: ${reason}` : `${format}, line ${line}: ${reason}`)
    this.name = 'FormatError'
  }
}

export function linesOf(text: string): string[] {
  return text.replace(/^\uFEFF/, '').split(/\r\n|\n|\r/)
}

/** A finite number, also in Fortran's spelling (1.0D-3); NaN if it is none. */
export function numberOf(word: string): number {
  if (!/^[+-]?(\d+\.?\d*|\.\d+)([eEdD][+-]?\d+)?$/.test(word.trim())) return NaN
  return Number(word.trim().replace(/[dD]/, 'e'))
}
