/** Structures from files, pasted text and SMILES. */

import type { Structure } from '../chem/structure'
import type { Question } from './chemistry.worker'
import { readCif } from './cif'
import { FormatError } from './lines'
import { readPdb } from './pdb'
import { readXyz } from './xyz'

export type Format = 'xyz' | 'pdb' | 'cif' | 'mol' | 'smiles'

/** Largest file that is read, bytes. */
export const MAX_FILE_BYTES = 32 << 20

/** What a file is, by its name, and where that says nothing by what it holds. */
export function detectFormat(text: string, fileName = ''): Format | undefined {
  const extension = /\.([a-z0-9]+)$/i.exec(fileName)?.[1]?.toLowerCase()
  switch (extension) {
    case 'xyz':
    case 'extxyz':
    case 'exyz':
      return 'xyz'
    case 'pdb':
    case 'ent':
      return 'pdb'
    case 'cif':
    case 'mmcif':
      return 'cif'
    case 'mol':
    case 'sdf':
    case 'sd':
      return 'mol'
    case 'smi':
    case 'smiles':
      return 'smiles'
  }
  if (/^\s*\d+\s*\r?\n/.test(text)) return 'xyz'
  if (/^(ATOM {2}|HETATM|HEADER|CRYST1|TITLE |REMARK|MODEL )/m.test(text)) return 'pdb'
  if (/^\s*data_/im.test(text) && /_atom_site/.test(text)) return 'cif'
  if (/V[23]000/.test(text) || /^M {2}END/m.test(text)) return 'mol'
  if (looksLikeSmiles(text)) return 'smiles'
  return undefined
}

/** One word of the letters of SMILES; not a sentence. */
export function looksLikeSmiles(text: string): boolean {
  const word = text.trim()
  return word.length > 0 && word.length <= 500 && /^[A-Za-z0-9@+\-[\]()=#$:./\\%*]+$/.test(word) && /[A-Za-z]/.test(word)
}

/** Reads a structure; errors say what is wrong with the input. */
export async function readStructure(text: string, fileName = ''): Promise<Structure> {
  const name = fileName.replace(/^.*[/\\]/, '').replace(/\.[^.]*$/, '') || 'Structure'
  switch (detectFormat(text, fileName)) {
    case 'xyz':
      return readXyz(text, name)
    case 'pdb':
      return readPdb(text, name)
    case 'cif':
      return readCif(text, name)
    case 'mol':
      return ask('mol', text, name)
    case 'smiles':
      return ask('smiles', text.trim().split(/\s/)[0] ?? '', name)
    case undefined:
      throw new FormatError(fileName || 'Text', 'neither xyz, extxyz, pdb, cif, mol, sdf nor SMILES')
  }
}

let worker: Worker | undefined
let lastId = 0
const waiting = new Map<number, { resolve: (s: Structure) => void; reject: (e: Error) => void }>()

/** Longest time for a conformer, ms: the worker is then given up and a new one made for the next. */
const PATIENCE_MS = 60_000

function ask(kind: Question['kind'], text: string, name: string): Promise<Structure> {
  if (!worker) {
    const made = new Worker(new URL('./chemistry.worker.ts', import.meta.url), { type: 'module' })
    made.onmessage = ({ data }: MessageEvent<{ id: number; structure?: Structure; error?: string }>) => {
      const asker = waiting.get(data.id)
      waiting.delete(data.id)
      if (data.structure) asker?.resolve(data.structure)
      else asker?.reject(new Error(data.error ?? 'not understood'))
    }
    made.onerror = () => giveUp('the chemistry library could not be loaded')
    worker = made
  }
  const id = ++lastId
  const chemistry = worker
  return new Promise<Structure>((resolve, reject) => {
    const clock = setTimeout(() => giveUp(`no answer within ${PATIENCE_MS / 1000} s`), PATIENCE_MS)
    const settle = (then: () => void): void => {
      clearTimeout(clock)
      then()
    }
    waiting.set(id, {
      resolve: (s) => settle(() => resolve(s)),
      reject: (e) => settle(() => reject(e)),
    })
    chemistry.postMessage({ id, kind, text, name } satisfies Question)
  })
}

function giveUp(why: string): void {
  worker?.terminate()
  worker = undefined
  for (const asker of waiting.values()) asker.reject(new Error(why))
  waiting.clear()
}
