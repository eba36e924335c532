/** Energy, temperature and force over time. The data are bounded (record/series.ts) and drawn a few
 *  times a second, so that a plot after a day costs what it costs after a minute. */

import { useEffect, useRef } from 'preact/hooks'
import uPlot from 'uplot'
import 'uplot/dist/uPlot.min.css'
import { settings } from '../settings'
import type { Series } from '../record/series'
import type { Workbench } from '../workbench'
import { Section, Segmented } from './controls'
import { usePage } from './context'
import { fixed } from './format'

/** Frames of the timeline that "recent" shows. */
const RECENT = 600
const HEIGHT = 98
const REDRAW_MS = 150

interface Curve {
  label: string
  colour: string
  column: number
}

interface Chart {
  title: string
  unit: string
  digits: number
  curves: Curve[]
}

const MD: readonly Chart[] = [
  {
    title: 'Energy',
    unit: 'eV',
    digits: 3,
    curves: [
      { label: 'potential', colour: '--curve-1', column: 0 },
      { label: 'total', colour: '--curve-2', column: 1 },
    ],
  },
  { title: 'Temperature', unit: 'K', digits: 0, curves: [{ label: 'temperature', colour: '--curve-3', column: 2 }] },
  { title: 'Largest force', unit: 'eV/Å', digits: 3, curves: [{ label: 'force', colour: '--curve-4', column: 3 }] },
]

const RELAX: readonly Chart[] = [
  { title: 'Energy', unit: 'eV', digits: 4, curves: [{ label: 'potential', colour: '--curve-1', column: 0 }] },
  { title: 'Largest force', unit: 'eV/Å', digits: 3, curves: [{ label: 'force', colour: '--curve-4', column: 1 }] },
]

export function Plots() {
  const { bench } = usePage()
  const kind = bench.runKind.value
  const charts = kind === 'md' ? MD : RELAX
  return (
    <Section
      title="Plots"
      name="plots"
      extra={
        <Segmented
          label="Range of the plots"
          value={settings.plotRange.value}
          options={[
            ['all', 'All'],
            ['recent', 'Recent'],
          ]}
          onChange={(value) => (settings.plotRange.value = value)}
        />
      }
    >
      {bench.timelineRange.value === undefined ? (
        <p class="note no-plots">
          {settings.kind.value === 'md' ? 'Energy, temperature and force' : 'Energy and force'} appear here while a simulation runs.
        </p>
      ) : (
        <div class="plots" data-testid="plots">
          {charts.map((chart) => (
            <PlotOf key={`${kind} ${chart.title}`} chart={chart} kind={kind} />
          ))}
        </div>
      )}
    </Section>
  )
}

function colourOf(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim() || '#888'
}

function PlotOf({ chart, kind }: { chart: Chart; kind: 'md' | 'relax' }) {
  const { bench } = usePage()
  const host = useRef<HTMLDivElement>(null)
  const theme = settings.theme.value
  useEffect(() => {
    const element = host.current
    if (!element) return
    let plot: uPlot | undefined
    let drawn = ''
    const make = (): void => {
      plot?.destroy()
      plot = new uPlot(options(chart, kind, element.clientWidth, bench), [[], ...chart.curves.flatMap(() => [[], [], []])] as uPlot.AlignedData, element)
      drawn = ''
    }
    make()
    const update = (): void => {
      const series = kind === 'md' ? bench.mdSeries : bench.relaxSeries
      const range = bench.timeline.range
      const shown = bench.shown.value
      const now = `${series.length} ${range?.last} ${settings.plotRange.value} ${shown} ${bench.latestSample(kind)}`
      if (now === drawn || document.hidden || !plot) return
      drawn = now
      plot.setData(settings.plotRange.value === 'recent' ? recent(bench, chart, kind) : everything(series, chart))
      element.dataset.points = String(plot.data[0].length)
    }
    const timer = setInterval(update, REDRAW_MS)
    update()
    const watch = new ResizeObserver(() => {
      if (plot && element.clientWidth > 0 && element.clientWidth !== plot.width)
        plot.setSize({ width: element.clientWidth, height: HEIGHT })
    })
    watch.observe(element)
    const dark = matchMedia('(prefers-color-scheme: dark)')
    dark.addEventListener('change', make)
    return () => {
      clearInterval(timer)
      watch.disconnect()
      dark.removeEventListener('change', make)
      plot?.destroy()
    }
  }, [chart, kind, theme])
  return (
    <figure>
      <figcaption>
        {chart.title} <span class="unit">{chart.unit}</span>
        {chart.curves.length > 1 &&
          chart.curves.map((c) => (
            <span class="legend">
              <i style={{ background: `var(${c.colour})` }} />
              {c.label}
            </span>
          ))}
      </figcaption>
      <div ref={host} class="plot" />
    </figure>
  )
}

function everything(series: Series, chart: Chart): uPlot.AlignedData {
  const x = series.data(0).x
  const columns = chart.curves.flatMap((c) => {
    const { mean, low, high } = series.data(c.column)
    return [gaps(low), gaps(high), gaps(mean)]
  })
  return [Array.from(x), ...columns] as uPlot.AlignedData
}

/** uPlot leaves out null, not NaN. */
function gaps(values: Float64Array): (number | null)[] {
  return Array.from(values, (v) => (Number.isNaN(v) ? null : v))
}

function recent(bench: Workbench, chart: Chart, kind: 'md' | 'relax'): uPlot.AlignedData {
  const range = bench.timeline.range
  const x: number[] = []
  const columns = chart.curves.map(() => [] as (number | null)[])
  if (range)
    for (let id = Math.max(range.first, range.last - RECENT + 1); id <= range.last; id++) {
      const f = bench.timeline.get(id)
      if (!f || f.kind !== kind) continue
      x.push(kind === 'md' ? f.timeFs / 1000 : f.step)
      const values =
        kind === 'md'
          ? [f.energy, f.energy + (f.kinetic ?? NaN), f.temperature, f.fmax]
          : [f.energy, f.fmax]
      chart.curves.forEach((c, i) => {
        const value = values[c.column]
        columns[i]!.push(value !== undefined && Number.isFinite(value) ? value : null)
      })
    }
  return [x, ...columns.flatMap((c) => [c, c, c])] as uPlot.AlignedData
}

function options(chart: Chart, kind: 'md' | 'relax', width: number, bench: Workbench): uPlot.Options {
  const ink = colourOf('--ink-3')
  const grid = colourOf('--line')
  const font = '11px system-ui, sans-serif'
  const series: uPlot.Series[] = [{}]
  const bands: uPlot.Band[] = []
  for (const curve of chart.curves) {
    const colour = colourOf(curve.colour)
    const at = series.length
    // The envelope of what a point stands for, then the mean.
    series.push({ stroke: 'transparent', width: 0, points: { show: false } })
    series.push({ stroke: 'transparent', width: 0, points: { show: false } })
    series.push({ stroke: colour, width: 1.4, points: { show: false }, spanGaps: true })
    bands.push({ series: [at + 1, at], fill: `${colour}30` })
  }
  return {
    width: Math.max(60, width),
    height: HEIGHT,
    padding: [6, 8, 0, 0],
    legend: { show: false },
    cursor: {
      drag: { x: false, y: false },
      points: { show: false },
      y: false,
    },
    scales: { x: { time: false }, y: { range: (_, low, high) => pleasant(low, high) } },
    axes: [
      {
        stroke: ink,
        font,
        size: 26,
        gap: 2,
        grid: { stroke: grid, width: 1 },
        ticks: { show: false },
        values: (plot, ticks) => {
          if (plot.data[0].length === 0) return ticks.map(() => '')
          // The last number that has room beside it says the unit.
          const limit = plot.width - 62 - (kind === 'md' ? 34 : 44)
          const last = ticks.findLastIndex((v) => plot.valToPos(v, 'x') < limit)
          return ticks.map((v, i) => `${+v.toFixed(4)}${i === last ? (kind === 'md' ? ' ps' : ' steps') : ''}`)
        },
        space: 60,
      },
      {
        stroke: ink,
        font,
        size: 62,
        gap: 4,
        grid: { stroke: grid, width: 1 },
        ticks: { show: false },
        space: 20,
        values: (plot, ticks) => {
          if (plot.data[0].length === 0) return ticks.map(() => '')
          const span = ticks.length > 1 ? Math.abs(ticks[1]! - ticks[0]!) : 1
          const digits = Math.min(6, Math.max(0, Math.ceil(-Math.log10(span) - 1e-9)))
          return ticks.map((v) => fixed(v, digits))
        },
      },
    ],
    series,
    bands,
    hooks: {
      // A click shows the frame of that moment.
      ready: [
        (u) => {
          u.over.addEventListener('click', () => {
            const left = u.cursor.left ?? -1
            if (left < 0) return
            const x = u.posToVal(left, 'x')
            let best: number | null = null
            let distance = Infinity
            for (const f of bench.timeline) {
              if (f.kind !== kind) continue
              const d = Math.abs((kind === 'md' ? f.timeFs / 1000 : f.step) - x)
              if (d < distance) {
                distance = d
                best = f.id
              }
            }
            bench.show(best)
          })
        },
      ],
      draw: [
        (u) => {
          const f = bench.shownFrame()
          if (!f || f.kind !== kind) return
          const x = u.valToPos(kind === 'md' ? f.timeFs / 1000 : f.step, 'x', true)
          u.ctx.save()
          u.ctx.strokeStyle = colourOf('--accent')
          u.ctx.lineWidth = devicePixelRatio
          u.ctx.beginPath()
          u.ctx.moveTo(x, u.bbox.top)
          u.ctx.lineTo(x, u.bbox.top + u.bbox.height)
          u.ctx.stroke()
          u.ctx.restore()
        },
      ],
    },
  }
}

/** A range with a little air; never empty. */
function pleasant(low: number | null, high: number | null): [number, number] {
  if (low === null || high === null || !Number.isFinite(low) || !Number.isFinite(high)) return [0, 1]
  const span = high - low
  const air = span > 0 ? 0.08 * span : Math.max(1e-6, 1e-6 * Math.abs(high))
  return [low - air, high + air]
}
