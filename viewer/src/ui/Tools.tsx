/** The tools at the left edge of the picture. */

import { elements, elementOfSymbol } from '../chem/elements'
import type { Tool } from '../scene/pointer'
import { IconButton } from './controls'
import { usePage } from './context'
import type { IconName } from './icons'

export const TOOLS: readonly { tool: Tool; icon: IconName; label: string; key: string }[] = [
  { tool: 'edit', icon: 'edit', label: 'Select, move atoms, rotate bonds', key: 'V' },
  { tool: 'view', icon: 'view', label: 'Look only', key: 'H' },
  { tool: 'add', icon: 'add', label: 'Add atoms', key: 'A' },
  { tool: 'erase', icon: 'erase', label: 'Delete atoms', key: 'X' },
  { tool: 'measure', icon: 'measure', label: 'Measure distances, angles, torsions', key: 'M' },
]

const COMMON = ['H', 'C', 'N', 'O', 'F', 'P', 'S', 'Cl']

export function Tools() {
  const { bench, scene, pointer } = usePage()
  return (
    <nav class="tools" aria-label="Tools">
      {TOOLS.map(({ tool, icon, label, key }) => (
        <IconButton
          icon={icon}
          label={`${label} (${key})`}
          active={pointer.tool.value === tool}
          onClick={() => (pointer.tool.value = tool)}
        />
      ))}
      <hr />
      <IconButton
        icon="undo"
        label={bench.undoLabel.value ? `Undo: ${bench.undoLabel.value} (Ctrl+Z)` : 'Nothing to undo'}
        disabled={!bench.undoLabel.value}
        onClick={() => bench.undo()}
      />
      <IconButton
        icon="redo"
        label={bench.redoLabel.value ? `Redo: ${bench.redoLabel.value} (Ctrl+Shift+Z)` : 'Nothing to redo'}
        disabled={!bench.redoLabel.value}
        onClick={() => bench.redo()}
      />
      <hr />
      <IconButton icon="frame" label="Show everything (F)" onClick={() => scene.frame()} />
    </nav>
  )
}

/** What the chosen tool needs: the element to add, or what to click. */
export function ToolOptions() {
  const { bench, pointer } = usePage()
  const tool = pointer.tool.value
  if (tool === 'measure') {
    const texts = [
      'Click the first atom',
      'Click a second atom for the distance',
      'Click a third atom for the angle, or beside the atoms to keep the distance',
      'Click a fourth atom for the torsion, or beside the atoms to keep the angle',
    ]
    return (
      <div class="tool-options">
        <span>{texts[pointer.pending.value.length]}</span>
        {bench.measures.value.length > 0 && (
          <button type="button" class="link" onClick={() => (bench.measures.value = [])}>
            Remove all
          </button>
        )}
      </div>
    )
  }
  if (tool === 'add')
    return (
      <div class="tool-options">
        <div class="elements" role="radiogroup" aria-label="Element">
          {COMMON.map((symbol) => {
            const e = elementOfSymbol(symbol)!
            return (
              <button
                type="button"
                role="radio"
                aria-checked={pointer.element.value === e.number}
                onClick={() => (pointer.element.value = e.number)}
              >
                {symbol}
              </button>
            )
          })}
          <select
            aria-label="Another element"
            value={String(pointer.element.value)}
            onChange={(e) => (pointer.element.value = Number(e.currentTarget.value))}
          >
            {elements()
              .slice(0, 94)
              .map((e) => (
                <option value={String(e.number)} selected={e.number === pointer.element.value}>
                  {e.symbol}
                </option>
              ))}
          </select>
        </div>
        <span>Click an atom to grow it, or empty space</span>
      </div>
    )
  if (tool === 'erase') return <div class="tool-options">Click the atoms to delete</div>
  return null
}
