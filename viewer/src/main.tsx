/** Puts the page together. */

import { effect } from '@preact/signals'
import { render } from 'preact'
import { firstExample } from './examples'
import { Pointer } from './scene/pointer'
import { Scene } from './scene/scene'
import { settings } from './settings'
import { applyTheme, App } from './ui/App'
import { PageContext } from './ui/context'
import { Workbench } from './workbench'
import './style.css'

const root = document.getElementById('app')!
try {
  begin()
} catch (error) {
  root.className = 'broken'
  root.textContent = error instanceof Error ? error.message : String(error)
}

function begin(): void {
  const canvas = document.createElement('canvas')
  canvas.setAttribute('aria-label', 'The structure')
  canvas.dataset.testid = 'canvas'
  const bench = new Workbench()
  const scene = new Scene(canvas, bench)
  const pointer = new Pointer(scene, bench)

  effect(() => applyTheme(scene))
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => applyTheme(scene))
  effect(() => {
    // Whatever changes the picture without moving an atom.
    for (const s of [settings.style, settings.bonds, settings.cell, settings.wrap, settings.forces, settings.forceScale, settings.labels, settings.depth])
      s.value
    bench.selection.value
    bench.selectedBond.value
    bench.measures.value
    scene.invalidate()
  })

  effect(() => {
    bench.identity.value
    const name = bench.structure.name
    document.title = bench.running.value ? `▶ ${name} – umaserve` : `${name} – umaserve`
  })

  bench.begin(firstExample())
  render(
    <PageContext.Provider value={{ bench, scene, pointer }}>
      <App />
    </PageContext.Provider>,
    root,
  )

  const draw = (now: number): void => {
    bench.tick(now)
    scene.draw()
    requestAnimationFrame(draw)
  }
  requestAnimationFrame(draw)
  // A hidden tab draws nothing, but its numbers and edits go on.
  setInterval(() => {
    if (document.hidden) bench.tick(performance.now())
  }, 1000)

  // For tests and for the curious: the state of the page.
  Object.assign(window, { umaserve: { bench, scene, pointer } })
}
