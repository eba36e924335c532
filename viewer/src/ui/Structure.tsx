import { useState } from 'preact/hooks'
import { element, elementOfSymbol } from '../chem/elements'
import { cellOf, cellParameters, impossibleSpin, multiplet, repeated } from '../chem/structure'
import { settings } from '../settings'
import { NumberField, Section, Segmented, Select, Setting, Switch } from './controls'
import { untrainedText } from './actions'
import { usePage } from './context'
import { fixed } from './format'

/** What is selected or measured, and what can be done with it. */
export function SelectionPanel() {
  const { bench } = usePage()
  bench.reading.value
  const selection = bench.selection.value
  const bond = bench.selectedBond.value
  const measures = bench.measures.value
  const [symbol, setSymbol] = useState('')
  if (selection.length === 0 && !bond && measures.length === 0) return null
  const name = (atom: number): string => `${element(bench.structure.numbers[atom] ?? 0).symbol}${atom + 1}`
  const m = selection.length >= 2 && selection.length <= 4 ? bench.measured(selection) : null
  const single = selection.length === 1 ? selection[0]! : undefined
  const p = bench.shownPositions()
  const f = bench.shownForces()
  const side = bond ? bench.rotatableSide() : null
  const length = bond ? bench.measured(bond) : null
  return (
    <Section title="Selection" name="selection">
      {selection.length > 0 && (
        <div class="facts" data-testid="selection">
          <div>
            <span class="label">{selection.length === 1 ? 'Atom' : `${selection.length} atoms`}</span>
            <span>{selection.length <= 6 ? selection.map(name).join(' – ') : ''}</span>
          </div>
          {single !== undefined && (
            <div>
              <span class="label">Position</span>
              <span class="tabular">{[0, 1, 2].map((k) => fixed(p[3 * single + k], 3)).join('  ')} Å</span>
            </div>
          )}
          {single !== undefined && f.length > 0 && (
            <div>
              <span class="label">Force</span>
              <span class="tabular">{fixed(Math.hypot(f[3 * single]!, f[3 * single + 1]!, f[3 * single + 2]!), 4)} eV/Å</span>
            </div>
          )}
          {m && (
            <div>
              <span class="label">{{ distance: 'Distance', angle: 'Angle', torsion: 'Torsion' }[m.kind]}</span>
              <span class="tabular">{m.text}</span>
            </div>
          )}
          <div class="row">
            <form
              onSubmit={(e) => {
                e.preventDefault()
                const found = elementOfSymbol(symbol)
                if (found) bench.changeElement(selection, found.number)
                else bench.say('error', 'No such element', `“${symbol}” is not an element.`)
                setSymbol('')
              }}
            >
              <input
                class="short"
                placeholder="Element"
                aria-label="Change to this element"
                value={symbol}
                onInput={(e) => setSymbol(e.currentTarget.value)}
                onKeyDown={(e) => e.stopPropagation()}
              />
              <button type="submit" class="button small" disabled={symbol.trim() === ''}>
                Change
              </button>
            </form>
            {m && (
              <button type="button" class="button small" onClick={() => bench.addMeasure(selection)}>
                Keep measure
              </button>
            )}
            <button type="button" class="button small" onClick={() => bench.deleteAtoms(selection)}>
              Delete
            </button>
          </div>
        </div>
      )}
      {bond && (
        <div class="facts" data-testid="bond">
          <div>
            <span class="label">Bond</span>
            <span>
              {name(bond[0])} – {name(bond[1])} <span class="tabular">{length?.text}</span>
            </span>
          </div>
          {side && side.atoms.length > 0 ? (
            <div class="row">
              <span class="label">Rotate</span>
              {[-30, -5, 5, 30].map((degrees) => (
                <button type="button" class="button small" onClick={() => bench.rotateBond(degrees)}>
                  {degrees > 0 ? `+${degrees}°` : `−${-degrees}°`}
                </button>
              ))}
            </div>
          ) : (
            <p class="note">This bond is part of a ring and cannot be rotated.</p>
          )}
        </div>
      )}
      {measures.map((atoms, i) => {
        const value = bench.measured(atoms)
        return (
          <div class="measure-row" data-testid="measure">
            <span>{atoms.map(name).join(' – ')}</span>
            <span class="tabular">{value?.text}</span>
            <button type="button" class="link" aria-label="Remove this measure" onClick={() => bench.removeMeasure(i)}>
              ×
            </button>
          </div>
        )
      })}
    </Section>
  )
}

export function StructurePanel() {
  const page = usePage()
  const { bench, scene } = page
  bench.identity.value
  const s = bench.structure
  const server = bench.server.value
  const tasks = [...new Set([...(server?.tasks ?? []), ...(s.task ? [s.task] : [])])]
  const cell = s.cell ? cellParameters(s.cell) : null
  // Where nothing is given, a molecule counts as a singlet.
  const spin = s.spin || ((s.task || server?.task) === 'omol' ? 1 : 0)
  const electrons = impossibleSpin(s.numbers, s.charge, spin)
  const likely = electrons !== undefined ? 1 + (Math.abs(electrons) % 2) : 0
  const untrained = bench.untrained(s)
  return (
    <Section title="Structure" name="structure">
      {untrained.length > 0 && (
        <p class="caution" data-testid="untrained">
          {untrainedText(page, untrained)}
        </p>
      )}
      <div class="fields">
        <NumberField
          label="Charge"
          unit="e"
          value={s.charge}
          min={-100}
          max={100}
          integer
          onChange={(charge) => bench.change('Charge', { charge })}
        />
        <NumberField
          label="Spin multiplicity"
          value={s.spin}
          min={0}
          max={100}
          integer
          zero="default"
          hint="2S + 1: singlet 1, doublet 2, triplet 3. Empty leaves it to the model’s default."
          onChange={(spin) => bench.change('Spin', { spin })}
        />
        {electrons !== undefined && (
          <p class="caution" data-testid="spin-caution">
            {electrons} electrons cannot be {multiplet(spin)}.{' '}
            {electrons > 0 && (
              <button type="button" class="link" onClick={() => bench.change('Spin', { spin: likely })}>
                Make it {multiplet(likely)}
              </button>
            )}
          </p>
        )}
        {tasks.length > 0 && (
          <Select
            label="Task"
            value={s.task}
            options={[['', `${server?.task ?? 'default'} (default)`], ...tasks.map((t) => [t, TASKS[t] ? `${t}: ${TASKS[t]}` : t] as const)]}
            hint="Which data the model imitates: the level of theory."
            onChange={(task) => bench.change('Task', { task })}
          />
        )}
      </div>
      {cell && s.cell ? (
        <>
          <div class="cell">
            {(['a', 'b', 'c'] as const).map((label, i) => (
              <NumberField
                label={label}
                unit="Å"
                value={cell.lengths[i]!}
                min={0.5}
                max={10_000}
                digits={4}
                step={0.05}
                onChange={(value) => {
                  const lengths = cell.lengths.slice() as [number, number, number]
                  lengths[i] = value
                  bench.change('Cell', { cell: cellOf(lengths, cell.angles as [number, number, number]) })
                }}
              />
            ))}
            {(['α', 'β', 'γ'] as const).map((label, i) => (
              <div class="field">
                <span class="label">{label}</span>
                <span class="tabular">{fixed(cell.angles[i], 2)}°</span>
              </div>
            ))}
          </div>
          <div class="switches">
            {(['a', 'b', 'c'] as const).map((label, i) => (
              <Switch
                label={`Periodic along ${label}`}
                value={s.periodic[i]!}
                onChange={(value) => {
                  const periodic: [boolean, boolean, boolean] = [...s.periodic]
                  periodic[i] = value
                  bench.change('Periodicity', { periodic })
                }}
              />
            ))}
          </div>
          <div class="row">
            <button
              type="button"
              class="button small"
              onClick={() => {
                bench.load(repeated(bench.structure, [2, 2, 2]), 'Repeat cell')
                scene.frame()
              }}
            >
              Repeat 2 × 2 × 2
            </button>
            <button
              type="button"
              class="button small"
              onClick={() => bench.change('Remove cell', { cell: null, periodic: [false, false, false] })}
            >
              Remove cell
            </button>
          </div>
        </>
      ) : (
        <div class="row">
          <button
            type="button"
            class="button small"
            disabled={s.numbers.length === 0}
            title="A periodic box around the atoms, with 3 Å of room"
            onClick={() => {
              const span = [0, 1, 2].map((k) => {
                let low = Infinity
                let high = -Infinity
                for (let i = k; i < s.positions.length; i += 3) {
                  low = Math.min(low, s.positions[i]!)
                  high = Math.max(high, s.positions[i]!)
                }
                return { low, size: high - low + 3 }
              })
              const positions = s.positions.map((x, i) => x - span[i % 3]!.low + 1.5)
              bench.change('Add cell', {
                positions,
                cell: Float64Array.of(span[0]!.size, 0, 0, 0, span[1]!.size, 0, 0, 0, span[2]!.size),
                periodic: [true, true, true],
              })
              scene.frame()
            }}
          >
            Put into a periodic box
          </button>
        </div>
      )}
    </Section>
  )
}

const TASKS: Record<string, string> = {
  omol: 'molecules',
  omat: 'materials',
  oc20: 'catalysts',
  oc22: 'oxide catalysts',
  oc25: 'electrocatalysts',
  odac: 'MOFs',
  omc: 'molecular crystals',
}

export function DisplayPanel() {
  return (
    <Section title="Display" name="display" open={false}>
      <Segmented
        label="Style"
        value={settings.style.value}
        options={[
          ['ball-and-stick', 'Balls, sticks'],
          ['sticks', 'Sticks'],
          ['space-filling', 'Spheres'],
        ]}
        onChange={(value) => (settings.style.value = value)}
      />
      <div class="switches">
        <Setting label="Bonds" of={settings.bonds} />
        <Setting label="Force arrows" of={settings.forces} hint="From each atom along its force" />
        <Setting label="Cell" of={settings.cell} />
        <Setting label="Wrap atoms into the cell" of={settings.wrap} hint="Only in the picture" />
        <Setting label="Haze with depth" of={settings.depth} />
      </div>
      <div class="fields">
        <NumberField
          label="Arrow length"
          unit="×"
          value={settings.forceScale.value}
          min={0.1}
          max={20}
          factor={1.25}
          digits={2}
          onChange={(value) => (settings.forceScale.value = value)}
        />
        <Select
          label="Labels"
          value={settings.labels.value}
          options={[
            ['none', 'None'],
            ['element', 'Elements'],
            ['index', 'Elements and numbers'],
          ]}
          onChange={(value) => (settings.labels.value = value)}
        />
      </div>
    </Section>
  )
}

export function MessagesPanel() {
  const { bench } = usePage()
  const entries = bench.log.value.slice(-40).reverse()
  return (
    <Section title="Messages" name="messages" open={false}>
      {entries.length === 0 ? (
        <p class="note">What the server says appears here.</p>
      ) : (
        <ol class="messages" data-testid="messages">
          {entries.map((entry) => (
            <li class={entry.severity} key={entry.id}>
              <time>{entry.when.toLocaleTimeString([], { hour12: false })}</time>
              <span>
                <strong>{entry.title}</strong> {entry.detail}
              </span>
            </li>
          ))}
        </ol>
      )}
    </Section>
  )
}
