/** What several controls and keys do alike. */

import { element } from '../chem/elements'
import type { Structure } from '../chem/structure'
import type { Example } from '../examples'
import { MAX_FILE_BYTES, readStructure } from '../formats'
import { formulaText } from '../chem/structure'
import { writeExtxyz, writeXyz } from '../formats/xyz'
import { bytes } from './format'
import { dialog, type Page } from './context'

/** Loads a structure and shows all of it. */
export function show(page: Page, structure: Structure): void {
  page.bench.load(structure)
  page.scene.orient()
  page.scene.frame()
  dialog.value = 'none'
  const untrained = page.bench.untrained(structure)
  if (untrained.length > 0) page.bench.say('warning', 'Not for this model', untrainedText(page, untrained))
}

/** Says which elements the model does not know. */
export function untrainedText(page: Page, elements: readonly number[]): string {
  const symbols = elements.map((z) => element(z).symbol).join(', ')
  return `${page.bench.server.value?.model ?? 'The model'} was not trained with ${symbols}: its energies and forces mean nothing here.`
}

/** The structure of an example, for the model that is served. */
export function exampleStructure(page: Page, example: Example): Structure {
  const structure = example.make()
  // Crystals belong to the task of materials where the model has it.
  if (structure.cell && !structure.task && page.bench.server.value?.tasks.includes('omat')) structure.task = 'omat'
  return structure
}

export function showExample(page: Page, example: Example): void {
  show(page, exampleStructure(page, example))
}

/** Reads text as a structure and shows it; says what is wrong otherwise. Returns whether it worked. */
export async function showText(page: Page, text: string, name: string): Promise<boolean> {
  try {
    const structure = await readStructure(text, name)
    if (structure.numbers.length === 0) throw new Error('there are no atoms in it')
    const unknown = /^(Structure|Molecule)$/.test(structure.name)
    show(page, unknown ? { ...structure, name: formulaText(structure.numbers) } : structure)
    return true
  } catch (error) {
    page.bench.say('error', 'This cannot be opened', error instanceof Error ? error.message : String(error))
    return false
  }
}

export async function showFile(page: Page, file: File): Promise<void> {
  if (file.size > MAX_FILE_BYTES) {
    page.bench.say('error', 'This cannot be opened', `${file.name} has ${bytes(file.size)}; up to ${bytes(MAX_FILE_BYTES)} are read.`)
    return
  }
  await showText(page, await file.text(), file.name)
}

/** Gives the browser a file to keep. */
export function save(name: string, content: string | Blob): void {
  const blob = typeof content === 'string' ? new Blob([content], { type: 'text/plain;charset=utf-8' }) : content
  const url = URL.createObjectURL(blob)
  const link = document.createElement('a')
  link.href = url
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(url), 60_000)
}

export function fileStem(page: Page): string {
  return page.bench.structure.name.replace(/[^A-Za-z0-9._-]+/g, '-').replace(/^[-.]+|[-.]+$/g, '').toLowerCase() || 'structure'
}

/** The geometry that is shown, as a file. */
export function saveSnapshot(page: Page, format: 'xyz' | 'extxyz'): void {
  const { bench } = page
  const frame = bench.shownFrame()
  const reading = bench.reading.value
  const forces = bench.shownForces()
  const content = {
    structure: { ...bench.structure, cell: bench.shownCell() },
    positions: bench.shownPositions(),
    velocities: frame?.velocities ?? bench.structure.velocities,
    ...(forces.length > 0 ? { forces } : {}),
    energy: frame?.energy ?? reading.energy,
    step: frame?.step ?? reading.step,
    timeFs: frame?.timeFs ?? reading.timeFs,
  }
  save(`${fileStem(page)}.${format}`, format === 'xyz' ? writeXyz(content) : writeExtxyz(content))
}

/** All frames of the timeline, as extended XYZ. */
export function saveTimeline(page: Page): void {
  const { bench } = page
  const parts: string[] = []
  for (const frame of bench.timeline)
    parts.push(
      writeExtxyz({
        structure: { ...bench.structure, cell: frame.cell ?? bench.structure.cell },
        positions: frame.positions,
        velocities: frame.velocities,
        forces: frame.forces,
        energy: frame.energy,
        step: frame.step,
        timeFs: frame.timeFs,
      }),
    )
  save(`${fileStem(page)}-frames.extxyz`, new Blob(parts, { type: 'text/plain' }))
}
