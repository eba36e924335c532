/** What a frame costs the page: CPU time of its scripts, of the browser's layout and painting, and of
 *  rasterisation, at N atoms with frames arriving at a fixed rate. Run: npm run bench
 *
 *  The browser draws in software here (SwiftShader), so rasterisation says nothing about a graphics
 *  card; the scripts cost the same with one. Times are CPU times of threads (tdur of the trace), not
 *  wall-clock times: a busy machine changes them little. */

import type { CDPSession } from 'playwright-core'
import { startBrowser } from '../e2e/server'
import { startShakingServer } from './server'
import type { Workbench } from '../src/workbench'
import type { Scene } from '../src/scene/scene'

declare global {
  interface Window {
    umaserve: { bench: Workbench; scene: Scene }
  }
}

const RATE = 30
const SECONDS = Number(process.env.BENCH_SECONDS ?? 15)
const SIZES = (process.env.BENCH_ATOMS ?? '100,1000,5000').split(',').map(Number)

interface TraceEvent {
  name: string
  cat: string
  ph: string
  pid: number
  tid: number
  ts: number
  dur?: number
  tdur?: number
  args?: { name?: string }
}

/** Methane molecules on a lattice in a periodic box. */
function molecules(atoms: number): { numbers: number[]; positions: number[]; edge: number } {
  const count = Math.ceil(atoms / 5)
  const side = Math.ceil(Math.cbrt(count))
  const spacing = 4.1
  const numbers: number[] = []
  const positions: number[] = []
  const corners = [[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
  for (let k = 0; k < count; k++) {
    const centre = [k % side, Math.floor(k / side) % side, Math.floor(k / side / side)].map((c) => (c + 0.5) * spacing)
    corners.forEach((corner, i) => {
      numbers.push(i === 0 ? 6 : 1)
      positions.push(...corner.map((x, axis) => centre[axis]! + 0.629 * x))
    })
  }
  return { numbers, positions, edge: side * spacing }
}

const SCRIPT = new Set(['FunctionCall', 'FireAnimationFrame', 'TimerFire', 'RunMicrotasks', 'EventDispatch', 'WebSocketReceive', 'v8.callFunction', 'V8.RunMicrotasks'])
const GARBAGE = /^(V8\.GC|MinorGC|MajorGC|V8\.GC_)/
const LAYOUT = new Set(['UpdateLayoutTree', 'Layout', 'PrePaint', 'Paint', 'Layerize', 'Commit', 'UpdateLayer', 'HitTest', 'ScheduleStyleRecalculation'])

/** CPU time (ms) of the outermost events of each kind on one thread; an event inside another of a kind
 *  that is counted belongs to the outer one. */
function shares(events: TraceEvent[]): { script: number; garbage: number; layout: number } {
  const sums = { script: 0, garbage: 0, layout: 0 }
  const kind = (e: TraceEvent): keyof typeof sums | undefined =>
    GARBAGE.test(e.name) ? 'garbage' : SCRIPT.has(e.name) ? 'script' : LAYOUT.has(e.name) ? 'layout' : undefined
  const counted = events.filter((e) => e.ph === 'X' && kind(e) !== undefined)
  counted.sort((a, b) => a.ts - b.ts || (b.dur ?? 0) - (a.dur ?? 0))
  let end = -Infinity
  for (const event of counted) {
    if (event.ts < end) continue
    end = event.ts + (event.dur ?? 0)
    sums[kind(event)!] += (event.tdur ?? event.dur ?? 0) / 1000
  }
  return sums
}

async function cpuSeconds(session: CDPSession): Promise<Map<string, number>> {
  const { processInfo } = await session.send('SystemInfo.getProcessInfo')
  const sums = new Map<string, number>()
  for (const p of processInfo) sums.set(p.type, (sums.get(p.type) ?? 0) + p.cpuTime)
  return sums
}

const server = await startShakingServer(RATE)
const browser = await startBrowser()
const rows: string[][] = []
try {
  for (const atoms of SIZES) {
    const page = await browser.newPage({ viewport: { width: 1366, height: 768 } })
    await page.goto(server.url)
    await page.waitForSelector('[data-testid=connection][data-state=online]')
    const given = molecules(atoms)
    await page.evaluate(({ numbers, positions, edge }) => {
      const { bench, scene } = window.umaserve
      bench.load({
        name: 'Methane',
        numbers: Uint8Array.from(numbers),
        positions: Float64Array.from(positions),
        velocities: new Float64Array(positions.length),
        cell: Float64Array.of(edge, 0, 0, 0, edge, 0, 0, 0, edge),
        periodic: [true, true, true],
        charge: 0,
        spin: 0,
        task: '',
      })
      scene.orient()
      scene.frame()
    }, given)
    await page.getByTestId('play').click()
    await page.waitForTimeout(3000)
    const session = await browser.newBrowserCDPSession()
    const draws = (): Promise<number> => page.evaluate(() => window.umaserve.scene.draws)
    const heard = (): Promise<number> => page.evaluate(() => window.umaserve.bench.timeline.last!.step)
    await browser.startTracing(page, { categories: ['devtools.timeline', 'disabled-by-default-devtools.timeline', 'v8', 'toplevel'] })
    const before = { cpu: await cpuSeconds(session), draws: await draws(), heard: await heard(), when: performance.now() }
    await page.waitForTimeout(1000 * SECONDS)
    const after = { cpu: await cpuSeconds(session), draws: await draws(), heard: await heard(), when: performance.now() }
    const trace = JSON.parse((await browser.stopTracing()).toString()) as { traceEvents: TraceEvent[] }
    const main = new Map<string, number>()
    for (const e of trace.traceEvents) if (e.ph === 'M' && e.name === 'thread_name' && e.args?.name === 'CrRendererMain') main.set(`${e.pid} ${e.tid}`, 0)
    for (const e of trace.traceEvents) {
      const key = `${e.pid} ${e.tid}`
      if (main.has(key)) main.set(key, main.get(key)! + 1)
    }
    // The page's own renderer is the busiest one.
    const [busiest] = [...main].sort((a, b) => b[1] - a[1])[0] ?? ['']
    const sums = shares(trace.traceEvents.filter((e) => `${e.pid} ${e.tid}` === busiest))
    const frames = after.heard - before.heard
    const drawn = after.draws - before.draws
    const seconds = (after.when - before.when) / 1000
    const gpu = ((after.cpu.get('GPU') ?? 0) - (before.cpu.get('GPU') ?? 0)) * 1000
    const drawing = await page.evaluate(() => {
      const times = window.umaserve.scene.drawTimes.slice().sort((a, b) => a - b)
      return times[Math.floor(times.length / 2)] ?? 0
    })
    rows.push([
      String(given.numbers.length),
      (frames / seconds).toFixed(1),
      (drawn / seconds).toFixed(1),
      (sums.script / frames).toFixed(2),
      (sums.garbage / frames).toFixed(2),
      (sums.layout / frames).toFixed(2),
      drawing.toFixed(2),
      (gpu / drawn).toFixed(1),
    ])
    await page.close()
  }
} finally {
  await browser.close()
  server.stop()
}
const head = ['atoms', 'frames/s', 'drawn/s', 'script', 'garbage', 'layout', 'draw (wall)', 'raster']
console.log(`CPU ms per frame at ${RATE} frames/s sent, 1366 x 768, SwiftShader; raster: GPU process, per picture drawn`)
const widths = head.map((h, i) => Math.max(h.length, ...rows.map((r) => r[i]!.length)))
for (const row of [head, ...rows]) console.log(row.map((cell, i) => cell.padStart(widths[i]!)).join('  '))
