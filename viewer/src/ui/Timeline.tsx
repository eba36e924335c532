/** The last frames: scrubbing, playback, going on from one of them. */

import { useEffect } from 'preact/hooks'
import { IconButton } from './controls'
import { usePage } from './context'
import { count, time } from './format'
import { Icon } from './icons'

/** Frames per second of playback at rate 1. */
const PLAYBACK_FPS = 30
const RATES = [0.25, 0.5, 1, 2, 4]

export function TimelineBar() {
  const { bench } = usePage()
  const range = bench.timelineRange.value
  const shown = bench.shown.value
  const playing = bench.playing.value
  useEffect(() => {
    if (!playing) return
    let last = performance.now()
    let debt = 0
    let handle = 0
    const turn = (now: number): void => {
      debt += ((now - last) / 1000) * PLAYBACK_FPS * bench.playbackRate.value
      last = now
      const whole = Math.floor(debt)
      if (whole > 0) {
        debt -= whole
        const limits = bench.timeline.range
        const at = bench.shown.value
        if (!limits || at === null) {
          bench.playing.value = false
          return
        }
        if (at + whole >= limits.last) {
          bench.show(limits.last)
          bench.playing.value = false
          return
        }
        bench.show(at + whole)
      }
      handle = requestAnimationFrame(turn)
    }
    handle = requestAnimationFrame(turn)
    return () => cancelAnimationFrame(handle)
  }, [playing])

  const empty = !range || range.last === range.first
  const frame = shown === null ? undefined : bench.timeline.get(shown)
  const at = shown ?? range?.last ?? 0
  const t = time(frame?.timeFs ?? bench.reading.value.timeFs)
  const stepLabel = frame ? `step ${count(frame.step)}` : bench.running.value ? 'live' : 'now'
  return (
    <footer class={`timeline${shown === null ? '' : ' past'}`} data-testid="timeline">
      <IconButton
        icon={playing ? 'pause' : 'play'}
        label={playing ? 'Stop the playback' : 'Play the frames back'}
        disabled={empty}
        onClick={() => {
          if (playing) bench.playing.value = false
          else if (range) {
            if (shown === null || shown >= range.last) bench.show(range.first)
            bench.playing.value = true
          }
        }}
      />
      <input
        type="range"
        aria-label="Frame"
        data-testid="scrub"
        min={range?.first ?? 0}
        max={range?.last ?? 1}
        value={at}
        disabled={empty}
        style={{ '--at': range && !empty ? `${(100 * (at - range.first)) / (range.last - range.first)}%` : '0%' }}
        onInput={(e) => {
          bench.playing.value = false
          bench.show(Number(e.currentTarget.value))
        }}
      />
      <span class="tabular where">
        <output data-testid="where">{stepLabel}</output>
        <span class="dim">
          {t.value} {t.unit}
        </span>
      </span>
      <select
        aria-label="Speed of the playback"
        title="Speed of the playback"
        value={String(bench.playbackRate.value)}
        onChange={(e) => (bench.playbackRate.value = Number(e.currentTarget.value))}
      >
        {RATES.map((rate) => (
          <option value={String(rate)} selected={rate === bench.playbackRate.value}>
            {rate}×
          </option>
        ))}
      </select>
      <button
        type="button"
        class="button small"
        data-testid="continue"
        disabled={shown === null}
        title="Makes this frame the state to go on from"
        onClick={() => bench.continueFromShown()}
      >
        Continue here
      </button>
      <button
        type="button"
        class={`button small${shown === null ? ' lit' : ''}`}
        data-testid="live"
        disabled={shown === null}
        title="Back to the live state (End)"
        onClick={() => bench.show(null)}
      >
        <Icon name="live" size={15} /> Live
      </button>
    </footer>
  )
}
