/** The keyboard. */

import { settings } from '../settings'
import { dialog, type Page } from './context'
import { TOOLS } from './Tools'

export function installKeys(page: Page): () => void {
  const { bench, scene, pointer } = page
  const press = (e: KeyboardEvent): void => {
    const target = e.target as HTMLElement | null
    if (target?.matches?.('input:not([type=range]):not([type=checkbox]), textarea, select')) return
    if (dialog.value !== 'none') return
    const command = e.ctrlKey || e.metaKey
    const key = e.key.toLowerCase()
    const act = (action: () => void): void => {
      e.preventDefault()
      action()
    }
    if (command && key === 'z') return act(() => (e.shiftKey ? bench.redo() : bench.undo()))
    if (command && key === 'y') return act(() => bench.redo())
    if (command && key === 'a')
      return act(() => {
        bench.selection.value = Array.from({ length: bench.atoms.value }, (_, i) => i)
        scene.invalidate()
      })
    if (command || e.altKey) return
    const tool = TOOLS.find((t) => t.key.toLowerCase() === key)
    if (tool) return act(() => (pointer.tool.value = tool.tool))
    switch (e.key) {
      case ' ':
        // A focused button takes the space bar itself.
        if (target?.matches?.('button, summary')) return
        return act(() => bench.toggle())
      case '.':
        return act(() => bench.step())
      case '1':
      case '2':
        return act(() => {
          settings.kind.value = e.key === '1' ? 'md' : 'relax'
          bench.parametersChanged()
        })
      case 'ArrowLeft':
      case 'ArrowRight': {
        if (target?.matches?.('input')) return
        const range = bench.timeline.range
        if (!range) return
        return act(() => {
          bench.playing.value = false
          const by = (e.key === 'ArrowLeft' ? -1 : 1) * (e.shiftKey ? 10 : 1)
          bench.show((bench.shown.value ?? range.last) + by)
        })
      }
      case 'End':
        return act(() => bench.show(null))
      case 'Home':
        return act(() => bench.show(bench.timeline.range?.first ?? null))
      case 'f':
      case 'F':
        return act(() => scene.frame())
      case 'o':
      case 'O':
        return act(() => (dialog.value = 'open'))
      case 'd':
      case 'D':
        return act(() => (dialog.value = 'download'))
      case '?':
        return act(() => (dialog.value = 'help'))
      case 'Delete':
      case 'Backspace':
        return act(() => bench.deleteAtoms(bench.selection.value))
      case '[':
      case ']':
        return act(() => void bench.rotateBond(e.key === '[' ? -5 : 5))
      case 'Escape':
        return act(() => {
          pointer.setPending([])
          bench.selection.value = []
          bench.selectedBond.value = null
          scene.invalidate()
        })
      case '+':
      case '=':
        return act(() => pointer.zoom(0.85))
      case '-':
        return act(() => pointer.zoom(1.18))
    }
  }
  addEventListener('keydown', press)
  return () => removeEventListener('keydown', press)
}
