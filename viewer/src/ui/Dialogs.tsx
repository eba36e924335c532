import { useEffect, useRef, useState } from 'preact/hooks'
import { EXAMPLES } from '../examples'
import { authorized, httpUrl } from '../protocol/address'
import { emptyStructure } from '../chem/structure'
import { Dialog } from './controls'
import { dialog, usePage } from './context'
import { exampleStructure, fileStem, save, saveSnapshot, saveTimeline, show, showExample, showFile, showText } from './actions'
import { bytes, count } from './format'
import { Icon } from './icons'

const close = (): void => {
  dialog.value = 'none'
}

export function Dialogs() {
  switch (dialog.value) {
    case 'open':
      return <OpenDialog />
    case 'download':
      return <DownloadDialog />
    case 'help':
      return <HelpDialog />
    case 'none':
      return null
  }
}

function OpenDialog() {
  const page = usePage()
  const [text, setText] = useState('')
  const [busy, setBusy] = useState(false)
  const [error, setError] = useState('')
  const input = useRef<HTMLInputElement>(null)
  const groups = [...new Set(EXAMPLES.map((e) => e.group))]
  const read = async (): Promise<void> => {
    if (!text.trim() || busy) return
    setBusy(true)
    setError('')
    const worked = await showText(page, text, '')
    setBusy(false)
    if (!worked) setError(page.bench.log.value.at(-1)?.detail ?? 'This cannot be read.')
  }
  return (
    <Dialog title="Open" wide onClose={close}>
      <div class="open-grid">
        <div class="open-own">
          <h2>Yours</h2>
          <button type="button" class="drop" onClick={() => input.current?.click()}>
            <Icon name="open" size={22} />
            <span>
              <strong>Choose a file</strong> or drop it anywhere on the page
            </span>
            <span class="dim">xyz, extxyz, pdb, cif, mol, sdf</span>
          </button>
          <input
            ref={input}
            type="file"
            hidden
            data-testid="file"
            accept=".xyz,.extxyz,.exyz,.pdb,.ent,.cif,.mmcif,.mol,.sdf,.sd,.smi,text/plain"
            onChange={(e) => {
              const file = e.currentTarget.files?.[0]
              if (file) void showFile(page, file)
            }}
          />
          <label class="paste">
            <span>SMILES, or the text of a file</span>
            <textarea
              data-testid="paste"
              rows={5}
              spellcheck={false}
              placeholder="CCO"
              value={text}
              onInput={(e) => setText(e.currentTarget.value)}
              onKeyDown={(e) => {
                e.stopPropagation()
                if (e.key === 'Enter' && !e.shiftKey && !text.includes('\n')) {
                  e.preventDefault()
                  void read()
                }
                if (e.key === 'Escape') close()
              }}
            />
          </label>
          {error && <p class="caution">{error}</p>}
          <div class="row">
            <button type="button" class="button primary" data-testid="read" disabled={!text.trim() || busy} onClick={() => void read()}>
              {busy ? 'Reading…' : 'Show it'}
            </button>
            <button type="button" class="button" onClick={() => show(page, { ...emptyStructure(), name: 'New structure' })}>
              Start empty
            </button>
          </div>
        </div>
        <div class="open-examples">
          {groups.map((group) => (
            <section>
              <h2>{group}</h2>
              <ul>
                {EXAMPLES.filter((e) => e.group === group).map((e) => {
                  const known = page.bench.untrained(exampleStructure(page, e)).length === 0
                  return (
                    <li>
                      <button
                        type="button"
                        data-example={e.name}
                        class={known ? '' : 'untrained'}
                        title={known ? undefined : `${page.bench.server.value?.model} was not trained with its elements`}
                        onClick={() => showExample(page, e)}
                      >
                        <strong>{e.name}</strong>
                        <span class="dim">{known ? e.hint : 'not for this model'}</span>
                      </button>
                    </li>
                  )
                })}
              </ul>
            </section>
          ))}
        </div>
      </div>
    </Dialog>
  )
}

interface RecordingFile {
  name: string
  bytes: number
  /** ms since 1970 */
  modified: number
  frames?: number
  live: boolean
}

function DownloadDialog() {
  const page = usePage()
  const { bench } = page
  const [files, setFiles] = useState<RecordingFile[] | null>(null)
  const [problem, setProblem] = useState('')
  const [loading, setLoading] = useState('')
  useEffect(() => {
    let gone = false
    const look = async (): Promise<void> => {
      try {
        const answer = await fetch(httpUrl('recordings'), authorized(bench.token))
        if (gone) return
        if (!answer.ok) {
          setProblem(answer.status === 404 ? 'This server does not record.' : `The server answered ${answer.status}.`)
          setFiles([])
          return
        }
        const body = (await answer.json()) as { recordings?: RecordingFile[] }
        setProblem('')
        setFiles(body.recordings ?? [])
      } catch {
        if (!gone) setProblem('The list of recordings cannot be reached.')
      }
    }
    void look()
    const timer = setInterval(() => void look(), 4000)
    return () => {
      gone = true
      clearInterval(timer)
    }
  }, [])
  const fetchFile = async (file: RecordingFile): Promise<void> => {
    setLoading(file.name)
    try {
      const answer = await fetch(httpUrl(`recordings/${encodeURIComponent(file.name)}`), authorized(bench.token))
      if (!answer.ok) {
        const body = (await answer.json().catch(() => ({}))) as { error?: string }
        throw new Error(body.error ?? `The server answered ${answer.status}.`)
      }
      save(file.name, await answer.blob())
    } catch (error) {
      bench.say('error', 'Download failed', error instanceof Error ? error.message : String(error))
    }
    setLoading('')
  }
  const frames = bench.timeline.length
  const shown = bench.shownFrame()
  return (
    <Dialog title="Download" onClose={close}>
      <h2>{shown ? `Frame at step ${count(shown.step)}` : 'The structure now'}</h2>
      <div class="row">
        <button type="button" class="button" data-testid="save-xyz" onClick={() => saveSnapshot(page, 'xyz')}>
          <Icon name="download" /> {fileStem(page)}.xyz
        </button>
        <button type="button" class="button" data-testid="save-extxyz" onClick={() => saveSnapshot(page, 'extxyz')}>
          <Icon name="download" /> {fileStem(page)}.extxyz
        </button>
      </div>
      <p class="note">The extended file also holds cell, charge, energy, forces and momenta, as ASE reads them.</p>
      <h2>The timeline</h2>
      <div class="row">
        <button type="button" class="button" disabled={frames === 0} onClick={() => saveTimeline(page)}>
          <Icon name="download" /> {count(frames)} frames (.extxyz)
        </button>
      </div>
      <h2>Recordings on the server</h2>
      {problem && <p class="caution">{problem}</p>}
      {files === null && !problem && <p class="note">Looking…</p>}
      {files !== null && files.length === 0 && !problem && (
        <p class="note">None yet. Run a simulation with “Record to a file”.</p>
      )}
      {files !== null && files.length > 0 && (
        <ul class="recordings" data-testid="recordings">
          {files.map((file) => (
            <li>
              <button type="button" disabled={loading !== ''} onClick={() => void fetchFile(file)}>
                <Icon name="download" />
                <span class="file">{file.name}</span>
                {file.live && <span class="badge">recording</span>}
                <span class="dim">
                  {loading === file.name ? 'fetching…' : `${file.frames !== undefined ? `${count(file.frames)} frames, ` : ''}${bytes(file.bytes)}`}
                </span>
                <time class="dim">{new Date(file.modified).toLocaleString([], { dateStyle: 'short', timeStyle: 'short' })}</time>
              </button>
            </li>
          ))}
        </ul>
      )}
      <p class="note">H5MD files; MDAnalysis, ASE (through ZnH5MD) and pyh5md open them.</p>
    </Dialog>
  )
}

const KEYS: readonly (readonly [string, string])[] = [
  ['Space', 'Run or pause'],
  ['.', 'One step'],
  ['1 / 2', 'Dynamics / Relax'],
  ['← →', 'Frame before / after'],
  ['End', 'Back to the live state'],
  ['V H A X M', 'Tools: select, look, add, delete, measure'],
  ['Ctrl Z / Ctrl Shift Z', 'Undo / redo'],
  ['Delete', 'Delete the selected atoms'],
  ['[ ]', 'Rotate the selected bond by 5°'],
  ['F', 'Show everything'],
  ['O / D', 'Open / Download'],
  ['Esc', 'Drop selection and measure'],
]
const MOUSE: readonly (readonly [string, string])[] = [
  ['Drag an atom', 'Moves it; forces follow, or the running simulation feels it'],
  ['Drag a bond', 'Rotates the smaller side around it'],
  ['Drag beside', 'Turns the picture'],
  ['Right or Shift drag', 'Shifts the picture'],
  ['Alt drag', 'Rolls the picture'],
  ['Wheel, pinch', 'Zoom'],
  ['Click, Shift click', 'Selects an atom, several atoms'],
  ['Double click', 'Centres on an atom, or shows everything'],
]

function HelpDialog() {
  const { bench } = usePage()
  const server = bench.server.value
  return (
    <Dialog title="Keys and mouse" wide onClose={close}>
      <div class="help-grid">
        <dl>
          {KEYS.map(([key, what]) => (
            <>
              <dt>
                <kbd>{key}</kbd>
              </dt>
              <dd>{what}</dd>
            </>
          ))}
        </dl>
        <dl>
          {MOUSE.map(([key, what]) => (
            <>
              <dt>{key}</dt>
              <dd>{what}</dd>
            </>
          ))}
        </dl>
      </div>
      {server && (
        <p class="note">
          umaserve {server.version} computes with {server.model} (task {server.task}).
        </p>
      )}
    </Dialog>
  )
}

/** Asks for the token. */
export function TokenPrompt() {
  const { bench } = usePage()
  const [token, setToken] = useState('')
  const status = bench.status.value
  const locked = status.state === 'locked'
  const [asking, setAsking] = useState(false)
  useEffect(() => {
    if (locked) setAsking(true)
    else if (status.state === 'online') setAsking(false)
  }, [status])
  if (!asking) return null
  return (
    <div class="veil">
      <form
        class="card"
        onSubmit={(e) => {
          e.preventDefault()
          if (token.trim()) bench.unlock(token.trim())
        }}
      >
        <h1>Token</h1>
        <p>{locked ? status.reason : 'Connecting…'} It is printed when the server starts; the address printed there already holds it.</p>
        <input
          type="password"
          autocomplete="off"
          autofocus
          aria-label="Token"
          value={token}
          onInput={(e) => setToken(e.currentTarget.value)}
          onKeyDown={(e) => e.stopPropagation()}
        />
        <button type="submit" class="button primary" disabled={!token.trim() || !locked}>
          Connect
        </button>
      </form>
    </div>
  )
}
