/** One visit of the page, against a real server, in the order in which a person would do things. */

import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import type { Browser, BrowserContext, Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Workbench } from '../src/workbench'
import type { Scene } from '../src/scene/scene'
import { ARTIFACTS, CHROMIUM, program, python, startBrowser, startServer, type Server } from './server'

declare global {
  interface Window {
    umaserve: { bench: Workbench; scene: Scene }
  }
}

const missing = [
  [program(), 'umaserve (make build)'],
  [existsSync(CHROMIUM), `a browser (${CHROMIUM}; apt install chromium)`],
]
  .filter(([there]) => !there)
  .map(([, what]) => what)
if (missing.length > 0) console.warn(`skipped: the page is not tested without ${missing.join(' and ')}`)

describe.skipIf(missing.length > 0)('the page', () => {
  let server: Server
  let browser: Browser
  let context: BrowserContext
  let page: Page
  const problems: string[] = []
  const foreign: string[] = []

  const shot = (name: string): Promise<unknown> => page.screenshot({ path: join(ARTIFACTS, `${name}.png`) })
  const number = async (id: string): Promise<number> =>
    Number((await page.getByTestId(id).textContent())!.replace('−', '-').replace(/ /g, ''))
  const positions = (): Promise<number[]> => page.evaluate(() => Array.from(window.umaserve.bench.structure.positions))
  const atomOnScreen = (atom: number): Promise<{ x: number; y: number }> =>
    page.evaluate((a) => {
      const box = window.umaserve.scene.canvas.getBoundingClientRect()
      const at = window.umaserve.scene.placeOnScreen(a)!
      return { x: box.left + at[0], y: box.top + at[1] }
    }, atom)
  /** Atoms that no other atom hides. */
  const visible = (): Promise<number[]> =>
    page.evaluate(() => {
      const { scene, bench } = window.umaserve
      return Array.from({ length: bench.atoms.value }, (_, i) => i).filter((i) => {
        const at = scene.placeOnScreen(i)!
        return scene.pick(at[0], at[1]).atom === i
      })
    })
  const isOnline = (): Promise<unknown> =>
    page.waitForSelector('[data-testid=connection][data-state=online]', { timeout: 60_000 })
  const hasEnergy = (): Promise<unknown> =>
    page.waitForFunction(() => window.umaserve.bench.reading.value.energy !== undefined, null, { timeout: 60_000 })
  const isIdle = (): Promise<unknown> =>
    page.waitForFunction(() => window.umaserve.bench.run.value === 'idle', null, { timeout: 60_000 })
  const step = (): Promise<number> => page.evaluate(() => window.umaserve.bench.reading.value.step)

  beforeAll(async () => {
    server = await startServer()
    browser = await startBrowser()
    context = await browser.newContext({ viewport: { width: 1366, height: 768 }, colorScheme: 'light', acceptDownloads: true })
    page = await context.newPage()
    page.on('console', (m) => {
      if (m.type() === 'error') problems.push(m.text())
    })
    page.on('pageerror', (e) => problems.push(e.message))
    page.on('request', (r) => {
      if (!r.url().startsWith(server.url) && !/^(blob|data):/.test(r.url())) foreign.push(r.url())
    })
    const answer = await page.goto(server.url)
    expect(answer!.headers()['content-security-policy']).toContain("default-src 'none'")
    await isOnline()
  })

  afterAll(async () => {
    await browser?.close()
    await server?.stop()
  })

  it('shows ethanol and its energy', async () => {
    await page.click('text=Open')
    await page.click('[data-example="Ethanol"]')
    await hasEnergy()
    expect(await page.getByTestId('title').textContent()).toContain('Ethanol')
    expect(await number('energy')).toBeLessThan(0)
    expect(await number('fmax')).toBeGreaterThan(0)
    await shot('1-ethanol')
  })

  it('draws it', async () => {
    const colours = await page.evaluate(async () => {
      const { scene } = window.umaserve
      scene.invalidate()
      scene.draw()
      const gl = scene.canvas.getContext('webgl2')!
      const { drawingBufferWidth: w, drawingBufferHeight: h } = gl
      const pixels = new Uint8Array(4 * w * h)
      gl.readPixels(0, 0, w, h, gl.RGBA, gl.UNSIGNED_BYTE, pixels)
      let red = 0
      let grey = 0
      for (let i = 0; i < pixels.length; i += 4) {
        if (pixels[i]! > 120 && pixels[i + 1]! < 100 && pixels[i + 2]! < 100) red++
        if (pixels[i]! < 120 && Math.abs(pixels[i]! - pixels[i + 2]!) < 40) grey++
      }
      return { red, grey }
    })
    expect(colours.red).toBeGreaterThan(500)
    expect(colours.grey).toBeGreaterThan(500)
  })

  it('answers a drag with forces at once', async () => {
    const before = await positions()
    const energy = await page.evaluate(() => window.umaserve.bench.reading.value.energy!)
    const [atom] = (await visible()) as [number]
    const from = await atomOnScreen(atom)
    await page.mouse.move(from.x, from.y)
    await page.mouse.down()
    await page.mouse.move(from.x + 30, from.y + 8, { steps: 6 })
    await shot('2-drag')
    await page.mouse.up()
    const after = await positions()
    const moved = after.flatMap((x, i) => (x === before[i] ? [] : [Math.floor(i / 3)]))
    expect([...new Set(moved)]).toEqual([atom])
    expect(Math.hypot(...[0, 1, 2].map((k) => after[3 * atom + k]! - before[3 * atom + k]!))).toBeGreaterThan(0.1)
    await page.waitForFunction((e) => window.umaserve.bench.reading.value.energy !== e, energy)
    await page.keyboard.press('Control+z')
    await page.waitForFunction((e) => Math.abs((window.umaserve.bench.reading.value.energy ?? 0) - e) < 1e-6, energy)
    expect(await positions()).toEqual(before)
  })

  it('rotates a bond, adds and deletes atoms, and undoes it', async () => {
    const before = await positions()
    await page.evaluate(() => {
      const { bench } = window.umaserve
      const { numbers } = bench.structure
      for (let k = 0; k < bench.bonds.count; k++) {
        const pair: [number, number] = [bench.bonds.first[k]!, bench.bonds.second[k]!]
        if (numbers[pair[0]] === 6 && numbers[pair[1]] === 6) bench.selectedBond.value = pair
      }
    })
    await page.click('text=+30°')
    const turned = await positions()
    expect(turned.some((x, i) => Math.abs(x - before[i]!) > 0.1)).toBe(true)
    await shot('3-bond')
    await page.keyboard.press('a')
    const at = await atomOnScreen((await visible())[0]!)
    await page.mouse.click(at.x, at.y)
    expect(await page.evaluate(() => window.umaserve.bench.atoms.value)).toBe(10)
    await page.keyboard.press('v')
    await page.keyboard.press('Delete')
    expect(await page.evaluate(() => window.umaserve.bench.atoms.value)).toBe(9)
    for (let i = 0; i < 3; i++) await page.keyboard.press('Control+z')
    expect(await positions()).toEqual(before)
    await hasEnergy()
  })

  it('measures', async () => {
    await page.keyboard.press('m')
    for (const atom of (await visible()).slice(0, 3)) {
      const at = await atomOnScreen(atom)
      await page.mouse.click(at.x, at.y)
    }
    await page.mouse.click(120, 640)
    const text = await page.getByTestId('measure').textContent()
    expect(text).toMatch(/\d+\.\d°/)
    await page.keyboard.press('v')
  })

  it('runs dynamics: atoms move, plots grow', async () => {
    const before = await positions()
    await page.getByTestId('play').click()
    await page.waitForFunction(() => window.umaserve.bench.timeline.length > 40, null, { timeout: 120_000 })
    const after = await positions()
    expect(after.some((x, i) => Math.abs(x - before[i]!) > 0.005)).toBe(true)
    expect(await number('temperature')).toBeGreaterThan(10)
    await page.waitForFunction(() => Number(document.querySelector<HTMLElement>('.plot')?.dataset.points) > 20)
    await shot('4-dynamics')
  })

  it('lets an atom be dragged while it runs', async () => {
    const hydrogen = (await visible()).at(-1)!
    const from = await atomOnScreen(hydrogen)
    await page.mouse.move(from.x, from.y)
    await page.mouse.down()
    await page.mouse.move(from.x + 15, from.y - 15, { steps: 4 })
    const held = await page.evaluate((a) => Array.from(window.umaserve.bench.structure.positions.slice(3 * a, 3 * a + 3)), hydrogen)
    const now = await step()
    await page.waitForFunction((n) => window.umaserve.bench.reading.value.step > n + 10, now, { timeout: 60_000 })
    const still = await page.evaluate((a) => Array.from(window.umaserve.bench.structure.positions.slice(3 * a, 3 * a + 3)), hydrogen)
    // The hand is stronger than the force field.
    if (await page.evaluate(() => window.umaserve.bench.running.value)) expect(still).toEqual(held)
    await page.mouse.up()
  })

  it('stops, and shows frames of the past', async () => {
    await page.getByTestId('play').click()
    await isIdle()
    const live = await positions()
    await page.getByTestId('scrub').focus()
    await page.keyboard.press('Home')
    expect(await page.getByTestId('where').textContent()).toContain('step')
    const past = await page.evaluate(() => Array.from(window.umaserve.bench.shownPositions()))
    expect(past.some((x, i) => Math.abs(x - live[i]!) > 0.005)).toBe(true)
    await shot('5-timeline')
    expect(await positions()).toEqual(live)
    await page.getByTestId('live').click()
    expect(await page.evaluate(() => Array.from(window.umaserve.bench.shownPositions()))).toEqual(live)
  })

  it('does exactly one step at a time', async () => {
    let exact = 0
    for (let tries = 0; exact < 3 && tries < 20; tries++) {
      const before = await step()
      const begun = Date.now()
      await page.getByTestId('step').click()
      await page.waitForFunction((n) => window.umaserve.bench.reading.value.step > n, before, { timeout: 60_000 })
      await isIdle()
      const more = (await step()) - before - 1
      // The server pauses for half a second after a frame. Where the page stands still for that long,
      // its STOP comes too late; frames never come sooner.
      expect(more).toBeLessThanOrEqual(Math.floor((Date.now() - begun) / 500))
      if (more === 0) exact++
    }
    expect(exact).toBe(3)
  })

  it('continues after a reload where it was', async () => {
    const before = await positions()
    await page.reload()
    await isOnline()
    await hasEnergy()
    expect(await positions()).toEqual(before)
    expect(await page.getByTestId('title').textContent()).toContain('Ethanol')
  })

  it('relaxes until the forces are small', async () => {
    await page.click('text=Open')
    await page.click('[data-example="Water"]')
    await hasEnergy()
    await page.click('role=radio[name="Relax"]')
    await page.getByTestId('play').click()
    await page.waitForFunction(() => window.umaserve.bench.log.value.some((e) => e.title === 'Converged'), null, {
      timeout: 150_000,
    })
    await isIdle()
    await expect.poll(() => number('fmax'), { timeout: 60_000 }).toBeLessThan(0.02)
    await shot('6-relaxed')
  })

  it('opens files, SMILES and crystals', async () => {
    await page.click('text=Open')
    await page.getByTestId('file').setInputFiles({
      name: 'box.extxyz',
      mimeType: 'text/plain',
      buffer: Buffer.from('2\nLattice="6 0 0 0 6 0 0 0 6" Properties=species:S:1:pos:R:3\nN 0 0 0\nN 1.1 0 0\n'),
    })
    await page.waitForFunction(() => window.umaserve.bench.atoms.value === 2)
    await hasEnergy()
    await page.click('text=Open')
    await page.getByTestId('paste').fill('c1ccccc1O')
    await page.getByTestId('read').click()
    await page.waitForFunction(() => window.umaserve.bench.atoms.value === 13, null, { timeout: 90_000 })
    await page.click('text=Open')
    await page.getByTestId('paste').fill('this is no structure')
    await page.getByTestId('read').click()
    await page.waitForSelector('dialog .caution')
    await page.keyboard.press('Escape')
    await page.click('text=Open')
    await page.click('[data-example="Sodium chloride"]')
    await page.waitForFunction(() => window.umaserve.bench.atoms.value === 64)
    await page.waitForSelector('.toast.warning') // the page's own, then the server's
    await page.waitForTimeout(1500)
    await shot('7-crystal')
  })

  it('is dark, and fits a tablet', async () => {
    await page.click('text=Open')
    await page.click('[data-example="Caffeine"]')
    await page.waitForFunction(() => window.umaserve.bench.atoms.value === 24)
    expect(await page.locator('.toast.warning').count()).toBe(0)
    await hasEnergy()
    await page.emulateMedia({ colorScheme: 'dark' })
    await page.waitForTimeout(800)
    await shot('8-dark')
    await page.setViewportSize({ width: 820, height: 1100 })
    await page.waitForTimeout(800)
    await shot('9-tablet')
    await page.click('[aria-label="Panel"]')
    await page.waitForTimeout(500)
    await shot('10-tablet-panel')
    await page.click('.shade', { position: { x: 20, y: 300 } })
    await page.setViewportSize({ width: 1366, height: 768 })
    await page.emulateMedia({ colorScheme: 'light' })
  })

  it('hands out recordings that open in MDAnalysis, also while they are written', async () => {
    await page.click('text=Open')
    await page.click('[data-example="Methane"]')
    await hasEnergy()
    await page.click('role=radio[name="Dynamics"]')
    await page.getByTestId('play').click()
    await page.waitForFunction(() => window.umaserve.bench.timeline.length > 100, null, { timeout: 120_000 })
    const fetchFirst = async (name: string, live: boolean): Promise<string> => {
      await page.keyboard.press('d')
      const row = page.locator('[data-testid=recordings] button', { hasText: 'Methane' }).first()
      await row.waitFor({ timeout: 30_000 })
      if (!live) await page.waitForFunction(() => !document.querySelector('[data-testid=recordings] button')?.textContent?.includes('recording'), null, { timeout: 30_000 })
      const [download] = await Promise.all([page.waitForEvent('download'), row.click()])
      const path = join(ARTIFACTS, name)
      await download.saveAs(path)
      await shot(`11-download-${live ? 'live' : 'done'}`)
      await page.keyboard.press('Escape')
      return path
    }
    const live = await fetchFirst('live.h5', true)
    await page.getByTestId('play').click()
    await isIdle()
    const done = await fetchFirst('done.h5', false)
    expect(statSync(live).size).toBeGreaterThan(1000)
    const reader = python()
    if (!reader) {
      console.warn('skipped: MDAnalysis (tools/readers.sh) is not installed')
      return
    }
    const frames = [live, done].map((path) => {
      const code = [
        'import sys, MDAnalysis',
        'u = MDAnalysis.Universe(sys.argv[1], format="H5MD", topology_format="MINIMAL", n_atoms=5)',
        'r = [float(((t.positions[1:] - t.positions[0])**2).sum(1).max())**0.5 for t in u.trajectory]',
        'assert all(0.5 < x < 20 for x in r), r',
        'print(len(u.trajectory))',
      ].join('\n')
      return Number(execFileSync(reader, ['-c', code, path], { encoding: 'utf8' }))
    })
    expect(frames[0]!).toBeGreaterThan(20)
    expect(frames[1]!).toBeGreaterThanOrEqual(frames[0]!)
  })

  it('saves what is shown', async () => {
    await page.keyboard.press('d')
    const [download] = await Promise.all([page.waitForEvent('download'), page.getByTestId('save-extxyz').click()])
    const path = join(ARTIFACTS, 'snapshot.extxyz')
    await download.saveAs(path)
    const lines = readFileSync(path, 'utf8').split('\n')
    expect(lines[0]).toBe('5')
    expect(lines[1]).toMatch(/Properties=species:S:1:pos:R:3:momenta:R:3:forces:R:3 energy=-\d+/)
    await page.keyboard.press('Escape')
  })

  it('refuses what is not a recording', async () => {
    for (const name of ['..%2f..%2fetc%2fpasswd', '..%5cx.h5', 'none.h5', '.copy-x.h5', 'a%00.h5']) {
      const answer = await context.request.get(`${server.url}recordings/${name}`)
      expect(answer.status(), name).toBe(404)
    }
  })

  it('comes back by itself when the server does', async () => {
    const before = await positions()
    const { port } = server
    await server.stop()
    await page.waitForSelector('[data-testid=banner]')
    await shot('12-lost')
    server = await startServer({ port })
    await isOnline()
    await hasEnergy()
    expect(await page.evaluate(() => window.umaserve.bench.atoms.value)).toBe(5)
    expect((await positions()).every((x, i) => Math.abs(x - before[i]!) < 1e-9)).toBe(true)
  })

  it('contacted no other host and made no errors', () => {
    expect(foreign).toEqual([])
    // The browser itself reports the sockets that failed while the server was away.
    expect(problems.filter((p) => !/WebSocket|ERR_CONNECTION|Failed to load resource/.test(p))).toEqual([])
  })
})
