/** A file name that the server accepts: the structure's name and when. */
export function recordLabel(name: string, when = new Date()): string {
  const stem = name
    .normalize('NFKD')
    .replace(/[^A-Za-z0-9._-]+/g, '-')
    .replace(/^[^A-Za-z0-9]+|[^A-Za-z0-9]+$/g, '')
    .slice(0, 60)
  const stamp = when.toISOString().slice(0, 19).replace(/[-:]/g, '').replace('T', '-')
  return `${stem || 'run'}-${stamp}`
}
