/** The server's notices in words. The texts and their triggers are those of docs/protocol.md. */

export type Severity = 'info' | 'good' | 'warning' | 'error'

export interface Words {
  severity: Severity
  title: string
  detail: string
}

const TABLE: readonly [prefix: string, (rest: string) => Words][] = [
  [
    'PROTO_VIOLATION',
    (rest) => ({ severity: 'error', title: 'The server refused this', detail: `${upper(rest) || 'The message broke the protocol.'}` }),
  ],
  [
    'IDLE_WAITING_FOR_GEOMETRY',
    () => ({ severity: 'info', title: 'Waiting for a structure', detail: 'Open an example or a file, or add atoms.' }),
  ],
  [
    'UNTRAINED_ELEMENTS',
    (rest) => ({ severity: 'warning', title: 'This model does not know these elements', detail: `${upper(rest)}.` }),
  ],
  [
    'COMPUTE_ERROR',
    (rest) => ({
      severity: 'error',
      title: 'The computation failed',
      detail: `${upper(rest)}${/[.!]$/.test(rest) ? '' : '.'} The last good geometry is kept.`,
    }),
  ],
  [
    'STRUCTURE_CHANGED',
    () => ({ severity: 'info', title: 'Simulation stopped', detail: 'The structure was changed; press play to go on with the new one.' }),
  ],
  [
    'CALCULATOR_NOT_SUPPORTED',
    (rest) => ({ severity: 'error', title: 'This calculator is not offered', detail: upper(rest) || 'Only UMA models are.' }),
  ],
  ['SIMULATION_STOPPED', () => ({ severity: 'info', title: 'Simulation stopped', detail: '' })],
  [
    'WAITING_FOR_ACK',
    () => ({
      severity: 'warning',
      title: 'The simulation waits for this page',
      detail: 'Frames come faster than the page or the network takes them. It goes on by itself.',
    }),
  ],
  ['ACK_CLEARED', () => ({ severity: 'info', title: 'The simulation goes on', detail: 'This page has caught up.' })],
  [
    'RATE_LIMITED',
    (rest) => ({ severity: 'warning', title: 'Too many messages', detail: upper(rest) || 'The server takes them more slowly; nothing is lost.' }),
  ],
  [
    'SERVER_DRAINING',
    (rest) => ({
      severity: 'warning',
      title: 'The server is restarting',
      detail: `${rest ? `${upper(rest)} ` : ''}This page reconnects and goes on where it was.`,
    }),
  ],
  [
    'RECORDING_FAILED',
    (rest) => ({ severity: 'error', title: 'Recording failed', detail: `${upper(rest)} The simulation goes on.` }),
  ],
  [
    'RECORDING_RESUMED',
    (rest) => ({ severity: 'warning', title: 'Recording works again', detail: upper(rest) }),
  ],
]

/** A notice in words; one that is not known is shown as it is. */
export function inWords(message: string): Words {
  for (const [prefix, words] of TABLE)
    if (message === prefix || message.startsWith(`${prefix}:`) || message.startsWith(`${prefix} `))
      return words(message.slice(prefix.length).replace(/^\s*:\s*/, '').trim())
  return { severity: 'info', title: 'Message from the server', detail: message }
}

function upper(text: string): string {
  return text === '' ? '' : text[0]!.toUpperCase() + text.slice(1)
}
