import { settings } from '../settings'
import { ASE_TIME_FS } from '../chem/velocities'
import { Fold, NumberField, Section, Segmented, Select, Switch } from './controls'
import { usePage } from './context'
import { count, fixed, time } from './format'
import { Icon } from './icons'

export function Simulation() {
  const { bench } = usePage()
  const running = bench.running.value
  const kind = settings.kind.value
  const set =
    <T,>(of: { value: T }) =>
    (value: T): void => {
      of.value = value
      bench.parametersChanged()
    }
  const dt = settings.timestepFs.value
  const light = bench.structure.numbers.some((z) => z === 1)
  return (
    <Section title="Simulation" name="simulation">
      <Segmented
        label="Kind of simulation"
        value={kind}
        options={[
          ['md', 'Dynamics'],
          ['relax', 'Relax'],
        ]}
        onChange={set(settings.kind)}
      />
      <div class="transport">
        <button
          type="button"
          class={`button primary${running ? ' running' : ''}`}
          data-testid="play"
          disabled={bench.run.value === 'stopping' || bench.atoms.value === 0}
          title="Start or stop (Space)"
          onClick={() => bench.toggle()}
        >
          <Icon name={running ? 'pause' : 'play'} />
          {running ? 'Pause' : kind === 'md' ? 'Run dynamics' : 'Relax'}
        </button>
        <button
          type="button"
          class="button"
          data-testid="step"
          disabled={running || bench.atoms.value === 0}
          title="One step (.)"
          onClick={() => bench.step()}
        >
          <Icon name="step" /> Step
        </button>
      </div>
      {kind === 'md' ? (
        <div class="fields">
          <Select
            label="Integrator"
            value={settings.mdIntegrator.value}
            options={[
              ['langevin', 'Langevin (NVT)'],
              ['velocity_verlet', 'Verlet (NVE)'],
            ]}
            hint="Langevin keeps the temperature; velocity Verlet keeps the energy."
            onChange={set(settings.mdIntegrator)}
          />
          <NumberField
            label="Temperature"
            unit="K"
            value={settings.temperature.value}
            min={0}
            max={1e5}
            step={10}
            hint="Of the bath, and of velocities that are drawn. A change while dynamics runs draws them anew."
            onChange={set(settings.temperature)}
          />
          <NumberField
            label="Time step"
            unit="fs"
            value={dt}
            min={0.01}
            max={100}
            step={0.1}
            onChange={set(settings.timestepFs)}
          />
          {settings.mdIntegrator.value === 'langevin' && (
            <NumberField
              label="Friction"
              unit="1/t"
              value={settings.friction.value}
              min={0}
              max={100}
              factor={1.25}
              hint={`In 1/(ASE time unit); 1 unit = ${ASE_TIME_FS.toFixed(2)} fs. ${settings.friction.value} is ${(
                (1000 * settings.friction.value) /
                ASE_TIME_FS
              ).toFixed(2)} per ps.`}
              onChange={set(settings.friction)}
            />
          )}
          {dt > (light ? 1 : 4) && (
            <p class="caution">
              {light ? 'Above 1 fs the vibrations of hydrogen are not resolved.' : 'A time step this long is rarely stable.'}
            </p>
          )}
        </div>
      ) : (
        <div class="fields">
          <Select
            label="Method"
            value={settings.relaxIntegrator.value}
            options={[
              ['bfgs', 'BFGS'],
              ['lbfgs', 'L-BFGS'],
              ['fire', 'FIRE'],
            ]}
            hint="BFGS for up to 200 atoms; above, L-BFGS takes its place."
            onChange={set(settings.relaxIntegrator)}
          />
          <NumberField
            label="Until force below"
            unit="eV/Å"
            value={settings.fmax.value}
            min={0}
            max={10}
            factor={1.25}
            digits={5}
            hint="The largest force on an atom at which the relaxation counts as converged and stops."
            onChange={(value) => (settings.fmax.value = value)}
          />
          <NumberField
            label="Longest move"
            unit="Å"
            value={settings.maxStep.value}
            min={0.001}
            max={5}
            step={0.02}
            hint="Of an atom in one step."
            onChange={set(settings.maxStep)}
          />
        </div>
      )}
      <Fold title="Pace, recording, velocities" name="pace">
        <div class="fields">
          {kind === 'md' && (
            <NumberField
              label="Steps per frame"
              value={settings.stepsPerFrame.value}
              min={1}
              max={1000}
              integer
              hint="Steps of dynamics between two pictures."
              onChange={set(settings.stepsPerFrame)}
            />
          )}
          <NumberField
            label="Frames per second"
            value={settings.framesPerSecond.value}
            min={1}
            max={60}
            integer
            hint="At most; the server sends fewer where a step takes longer."
            onChange={set(settings.framesPerSecond)}
          />
        </div>
        <div class="switches">
          {bench.server.value?.records && (
            <Switch
              label="Record to a file"
              hint="An H5MD file on the server; find it under Download."
              value={settings.record.value}
              disabled={running}
              onChange={(value) => (settings.record.value = value)}
            />
          )}
          <Switch
            label="Keep running without this page"
            hint="The simulation goes on when the page is closed. Open it again in this tab to see it."
            value={settings.detached.value}
            onChange={(value) => bench.setDetached(value)}
          />
        </div>
        {kind === 'md' && (
          <div class="row">
            <button
              type="button"
              class="button small"
              disabled={running || bench.atoms.value === 0}
              title="New random velocities of the chosen temperature"
              onClick={() => bench.heat()}
            >
              Draw new velocities
            </button>
          </div>
        )}
      </Fold>
    </Section>
  )
}

export function Readings() {
  const { bench } = usePage()
  const frame = bench.shown.value === null ? undefined : bench.timeline.get(bench.shown.value)
  const live = bench.reading.value
  const r = frame ?? live
  const t = time(r.timeFs)
  const total = r.energy !== undefined && r.kinetic !== undefined ? r.energy + r.kinetic : undefined
  const perAtom = r.energy !== undefined && bench.atoms.value > 0 ? r.energy / bench.atoms.value : undefined
  return (
    <div class={`readings${bench.computing.value ? ' computing' : ''}`} data-testid="readings">
      <Value label="Energy" testid="energy" value={fixed(r.energy, 4)} unit="eV" hint={perAtom === undefined ? '' : `${fixed(perAtom, 4)} eV per atom`} />
      <Value label="Max force" testid="fmax" value={fixed(r.fmax, 4)} unit="eV/Å" />
      <Value label="Temperature" testid="temperature" value={fixed(r.temperature, 1)} unit="K" />
      <Value label="Total energy" testid="total" value={fixed(total, 4)} unit="eV" hint="Potential and kinetic energy" />
      <p class="pace">
        <span title="Simulated time">
          <output data-testid="time">{t.value}</output> {t.unit}
        </span>
        <span>
          step <output data-testid="stepcount">{count(r.step)}</output>
        </span>
        {bench.running.value && (
          <span title={live.framesPerSecond > 0 ? `${rate(live.framesPerSecond)} frames per second` : ''}>
            <output data-testid="speed">{live.stepsPerSecond > 0 ? rate(live.stepsPerSecond) : '–'}</output> steps/s
          </span>
        )}
      </p>
    </div>
  )
}

const rate = (perSecond: number): string => fixed(perSecond, perSecond < 10 ? 1 : 0)

function Value(props: { label: string; value: string; unit: string; testid: string; hint?: string }) {
  return (
    <div class="value" title={props.hint}>
      <span class="label">{props.label}</span>
      <span class="amount">
        <output data-testid={props.testid}>{props.value}</output>
        {props.unit && <span class="unit">{props.unit}</span>}
      </span>
    </div>
  )
}
