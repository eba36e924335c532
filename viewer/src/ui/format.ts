/** Numbers as they are shown. */

const MINUS = '−'

/** Fixed digits with a true minus sign; a dash for what is not known. */
export function fixed(value: number | undefined, digits: number): string {
  if (value === undefined || !Number.isFinite(value)) return '–'
  const text = value.toFixed(digits)
  return Number(text) === 0 ? (0).toFixed(digits) : text.replace('-', MINUS)
}

/** A time in fs, ps or ns. */
export function time(fs: number): { value: string; unit: string } {
  if (Math.abs(fs) < 1000) return { value: fixed(fs, 1), unit: 'fs' }
  if (Math.abs(fs) < 1e6) return { value: fixed(fs / 1e3, 3), unit: 'ps' }
  return { value: fixed(fs / 1e6, 4), unit: 'ns' }
}

export function bytes(n: number): string {
  if (n < 1000) return `${n} B`
  const units = ['kB', 'MB', 'GB', 'TB']
  let value = n
  let unit = ''
  for (unit of units) {
    value /= 1000
    if (value < 1000) break
  }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${unit}`
}

export function count(n: number): string {
  return n.toLocaleString('en-US').replace(/,/g, ' ')
}
