/** The line at the top: what is shown, files, connection. */

import { computed } from '@preact/signals'
import { formula } from '../chem/structure'
import { settings } from '../settings'
import { IconButton } from './controls'
import { dialog, drawer, usePage } from './context'
import { Icon } from './icons'
import { count } from './format'

export function TopBar() {
  const { bench } = usePage()
  bench.identity.value
  const s = bench.structure
  const theme = settings.theme.value
  const next = theme === 'auto' ? 'light' : theme === 'light' ? 'dark' : 'auto'
  return (
    <header class="top">
      <h1 class="brand">
        <svg width="22" height="22" viewBox="0 0 32 32" aria-hidden="true">
          <path d="M9 21 16 11l7 10" fill="none" stroke="#7b8794" stroke-width="3" />
          <circle cx="16" cy="10.5" r="6" fill="#d8453d" />
          <circle cx="8" cy="22" r="4.5" fill="#9fb3c8" />
          <circle cx="24" cy="22" r="4.5" fill="#9fb3c8" />
        </svg>
        <span>umaserve</span>
      </h1>
      <button type="button" class="button" onClick={() => (dialog.value = 'open')} title="Examples, files, SMILES (O)">
        <Icon name="open" /> Open
      </button>
      <button type="button" class="button" onClick={() => (dialog.value = 'download')} title="Structures and recordings (D)">
        <Icon name="download" /> <span class="wide-only">Download</span>
      </button>
      <div class="title" data-testid="title">
        <strong>{s.name}</strong>
        <span class="formula">
          {formula(s.numbers)
            .slice(0, 8)
            .map(([symbol, n]) => (
              <>
                {symbol}
                {n > 1 && <sub>{n}</sub>}
              </>
            ))}
        </span>
        <span class="dim">
          {count(s.numbers.length)} atom{s.numbers.length === 1 ? '' : 's'}
        </span>
      </div>
      <ConnectionChip />
      <IconButton
        icon={theme === 'light' ? 'sun' : theme === 'dark' ? 'moon' : 'auto'}
        label={`Colours: ${theme === 'auto' ? 'as the system' : theme} (switch to ${next === 'auto' ? 'the system’s' : next})`}
        onClick={() => (settings.theme.value = next)}
      />
      <IconButton icon="help" label="Keys and mouse (?)" onClick={() => (dialog.value = 'help')} />
      <IconButton icon="panel" label="Panel" class="narrow-only" active={drawer.value} onClick={() => (drawer.value = !drawer.value)} />
    </header>
  )
}

function ConnectionChip() {
  const { bench } = usePage()
  const status = bench.status.value
  const server = bench.server.value
  const state = computed(() => {
    switch (bench.status.value.state) {
      case 'online':
        return ['good', 'Connected']
      case 'connecting':
        return ['wait', 'Connecting…']
      case 'waiting':
        return ['bad', 'Reconnecting…']
      case 'locked':
        return ['bad', 'Token needed']
      case 'taken':
        return ['bad', 'Open elsewhere']
      case 'ended':
        return ['off', 'Session ended']
    }
  })
  const [tone, word] = state.value
  const workers = server ? `${server.workers} ${server.device === 'cuda' ? 'GPU' : 'CPU'} worker${server.workers === 1 ? '' : 's'}` : ''
  const detail = status.state === 'waiting' ? status.reason : server ? `umaserve ${server.version}, ${server.model}, ${workers}` : ''
  return (
    <button
      type="button"
      class="chip"
      data-testid="connection"
      data-state={status.state}
      title={detail}
      onClick={() => {
        if (status.state !== 'online') bench.reconnect()
      }}
    >
      <i class={`dot ${tone}`} />
      <span>{word}</span>
      {status.state === 'online' && server && (
        <span class="dim wide-only">
          {server.model} · {workers}
        </span>
      )}
    </button>
  )
}
