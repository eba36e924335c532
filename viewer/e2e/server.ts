/** A real server on a free port, and a real browser. */

import { spawn, type ChildProcess } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { chromium, type Browser } from 'playwright-core'

const here = new URL('.', import.meta.url).pathname
const root = join(here, '..', '..')

/** Where pictures of the page are kept. */
export const ARTIFACTS = join(here, 'artifacts')
mkdirSync(ARTIFACTS, { recursive: true })

export const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium'

/** The demo model: its molecules hold together. */
const MODEL = process.env.UMASERVE_MODEL ?? join(root, 'models', 'demo.pt')

/** The program under test: `UMASERVE`, else what was built last. */
export function program(): string | undefined {
  if (process.env.UMASERVE) return process.env.UMASERVE
  const built = ['release', 'debug'].map((kind) => join(root, 'target', kind, 'umaserve')).filter((path) => existsSync(path))
  built.sort((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs)
  return built[0]
}

/** A Python with MDAnalysis. */
export function python(): string | undefined {
  const candidates = [process.env.UMASERVE_PYTHON, join(root, '.venv-readers', 'bin', 'python')]
  return candidates.find((path) => path && existsSync(path))
}

export interface Server {
  url: string
  port: number
  recordings: string
  stop: () => Promise<void>
}

export async function startServer(options: { port?: number; recordings?: string; more?: string[] } = {}): Promise<Server> {
  const recordings = options.recordings ?? mkdtempSync(join(tmpdir(), 'umaserve-e2e-'))
  const path = program()
  if (!path) throw new Error('no umaserve: build it first (make build)')
  const child: ChildProcess = spawn(
    path,
    ['serve', '--no-auth', '--bind', `127.0.0.1:${options.port ?? 0}`, '--record', recordings, '--threads', '1', '--model', MODEL, ...(options.more ?? [])],
    { cwd: root, stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, RUST_LOG: process.env.RUST_LOG ?? 'warn' } },
  )
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  let text = ''
  const port = await new Promise<number>((resolve, reject) => {
    const limit = setTimeout(() => reject(new Error(`the server did not start within 60 s:\n${text}`)), 60_000)
    const listen = (chunk: Buffer): void => {
      text += chunk.toString()
      const found = /127\.0\.0\.1:(\d+)/.exec(text)
      if (found && !/:0\b/.test(found[0])) {
        clearTimeout(limit)
        resolve(Number(found[1]))
      }
    }
    child.stdout!.on('data', listen)
    child.stderr!.on('data', listen)
    child.once('exit', (code) => {
      clearTimeout(limit)
      reject(new Error(`the server ended with ${code}:\n${text}`))
    })
  })
  return {
    url: `http://127.0.0.1:${port}/`,
    port,
    recordings,
    stop: async () => {
      child.kill('SIGINT')
      const limit = setTimeout(() => child.kill('SIGKILL'), 20_000)
      await gone
      clearTimeout(limit)
      if (!options.recordings) rmSync(recordings, { recursive: true, force: true })
    },
  }
}

export function startBrowser(): Promise<Browser> {
  return chromium.launch({
    executablePath: CHROMIUM,
    headless: true,
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--use-angle=swiftshader',
      '--enable-unsafe-swiftshader',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  })
}
