import { useEffect, useRef, useState } from 'preact/hooks'
import type { Label } from '../scene/scene'
import { settings } from '../settings'
import { showFile, showText } from './actions'
import { dialog, drawer, usePage } from './context'
import { Dialogs, TokenPrompt } from './Dialogs'
import { Icon } from './icons'
import { Panel } from './Panel'
import { TimelineBar } from './Timeline'
import { Tools, ToolOptions } from './Tools'
import { TopBar } from './TopBar'
import { looksLikeSmiles } from '../formats'
import { installKeys } from './keys'

export function App() {
  return (
    <div class="app">
      <TopBar />
      <main>
        <Tools />
        <Stage />
        {drawer.value && <div class="shade" onClick={() => (drawer.value = false)} />}
        <Panel />
      </main>
      <TimelineBar />
      <Dialogs />
      <TokenPrompt />
    </div>
  )
}

function Stage() {
  const page = usePage()
  const { bench, scene } = page
  const host = useRef<HTMLDivElement>(null)
  const labels = useRef<HTMLDivElement>(null)
  const [dropping, setDropping] = useState(false)
  useEffect(() => {
    const element = host.current!
    element.prepend(scene.canvas)
    const watch = new ResizeObserver(() => scene.resize(element.clientWidth, element.clientHeight))
    watch.observe(element)
    scene.resize(element.clientWidth, element.clientHeight)
    scene.orient()
    scene.frame()
    scene.onLabels = (wanted) => writeLabels(labels.current!, wanted)
    const removeKeys = installKeys(page)
    const over = (e: DragEvent): void => {
      e.preventDefault()
      setDropping(true)
    }
    const leave = (e: DragEvent): void => {
      if (e.relatedTarget === null) setDropping(false)
    }
    const drop = (e: DragEvent): void => {
      e.preventDefault()
      setDropping(false)
      const file = e.dataTransfer?.files[0]
      const text = e.dataTransfer?.getData('text/plain')
      if (file) void showFile(page, file)
      else if (text) void showText(page, text, '')
    }
    const paste = (e: ClipboardEvent): void => {
      const target = e.target as HTMLElement | null
      if (target?.matches?.('input, textarea, select')) return
      const file = e.clipboardData?.files[0]
      const text = e.clipboardData?.getData('text/plain') ?? ''
      if (file) void showFile(page, file)
      else if (text.includes('\n') || looksLikeSmiles(text)) void showText(page, text, '')
    }
    addEventListener('dragover', over)
    addEventListener('dragleave', leave)
    addEventListener('drop', drop)
    addEventListener('paste', paste)
    return () => {
      watch.disconnect()
      removeKeys()
      removeEventListener('dragover', over)
      removeEventListener('dragleave', leave)
      removeEventListener('drop', drop)
      removeEventListener('paste', paste)
    }
  }, [])
  return (
    <div class="stage" ref={host}>
      <div class="labels" ref={labels} aria-hidden="true" />
      <ToolOptions />
      <Toast />
      <Banner />
      {bench.atoms.value === 0 && (
        <div class="empty">
          <Icon name="flask" size={40} />
          <p>Nothing here yet</p>
          <div class="row">
            <button type="button" class="button primary" onClick={() => (dialog.value = 'open')}>
              Open an example
            </button>
            <button type="button" class="button" onClick={() => (page.pointer.tool.value = 'add')}>
              Add atoms
            </button>
          </div>
        </div>
      )}
      {bench.shown.value !== null && <div class="past-note">A frame of the past. The live state is not touched.</div>}
      {dropping && (
        <div class="drop-veil">
          <Icon name="open" size={36} />
          <p>Drop to open</p>
        </div>
      )}
    </div>
  )
}

/** The words over the picture change with every frame: written without the virtual DOM. */
function writeLabels(host: HTMLElement, wanted: readonly Label[]): void {
  while (host.children.length > wanted.length) host.lastElementChild!.remove()
  wanted.forEach((label, i) => {
    let element = host.children[i] as HTMLElement | undefined
    if (!element) {
      element = document.createElement('span')
      host.append(element)
    }
    const name = `label ${label.kind}`
    if (element.className !== name) element.className = name
    if (element.textContent !== label.text) element.textContent = label.text
    element.style.transform = `translate(${label.x.toFixed(1)}px, ${label.y.toFixed(1)}px) translate(-50%, -50%)`
  })
}

const TOAST_MS = { info: 4000, good: 5000, warning: 8000, error: 15_000 }

function Toast() {
  const { bench } = usePage()
  const toast = bench.toast.value
  useEffect(() => {
    if (!toast) return
    const timer = setTimeout(() => {
      if (bench.toast.value === toast) bench.toast.value = null
    }, TOAST_MS[toast.severity])
    return () => clearTimeout(timer)
  }, [toast])
  if (!toast) return null
  return (
    <div class={`toast ${toast.severity}`} role={toast.severity === 'error' ? 'alert' : 'status'} data-testid="toast">
      <div>
        <strong>{toast.title}</strong>
        {toast.detail && <span>{toast.detail}</span>}
      </div>
      <button type="button" class="link" aria-label="Dismiss" onClick={() => (bench.toast.value = null)}>
        <Icon name="close" size={14} />
      </button>
    </div>
  )
}

/** What stands between the page and the server, as long as it does. */
function Banner() {
  const { bench } = usePage()
  const status = bench.status.value
  const [now, setNow] = useState(Date.now())
  const waiting = status.state === 'waiting'
  useEffect(() => {
    if (!waiting) return
    const timer = setInterval(() => setNow(Date.now()), 500)
    return () => clearInterval(timer)
  }, [waiting])
  if (status.state === 'waiting') {
    const seconds = Math.max(0, Math.ceil((status.retryAt - now) / 1000))
    return (
      <div class="banner" role="status" data-testid="banner">
        {status.reason} Trying again{seconds > 0 ? ` in ${seconds} s` : '…'}
        <button type="button" class="button small" onClick={() => bench.reconnect()}>
          Now
        </button>
      </div>
    )
  }
  if (status.state === 'taken')
    return (
      <div class="banner" role="status" data-testid="banner">
        This session is open in another tab or window.
        <button type="button" class="button small" onClick={() => bench.reconnect()}>
          Take it back
        </button>
      </div>
    )
  if (status.state === 'ended')
    return (
      <div class="banner" role="status" data-testid="banner">
        The session has ended.
        <button type="button" class="button small" onClick={() => bench.reconnect()}>
          Begin a new one
        </button>
      </div>
    )
  return null
}

/** Sets the colours of the page and of the picture. */
export function applyTheme(scene: { setTheme(background: string, accent: string, line: string): void }): void {
  const theme = settings.theme.value
  if (theme === 'auto') delete document.documentElement.dataset.theme
  else document.documentElement.dataset.theme = theme
  const style = getComputedStyle(document.documentElement)
  const get = (name: string): string => style.getPropertyValue(name).trim()
  scene.setTheme(get('--stage'), get('--accent'), get('--cell'))
}
