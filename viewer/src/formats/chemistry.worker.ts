/** openchemlib beside the page, so that nothing stalls while it thinks. */

import { Resources } from 'openchemlib'
import resources from '../../node_modules/openchemlib/dist/resources.json?url'
import { readMol, readSmiles } from './molecule'

export interface Question {
  id: number
  kind: 'smiles' | 'mol'
  text: string
  name: string
}

let ready: Promise<void> | undefined

self.onmessage = async ({ data }: MessageEvent<Question>) => {
  try {
    // Torsion statistics and force field parameters, once.
    ready ??= Resources.registerFromUrl(resources)
    await ready
    const structure = data.kind === 'smiles' ? readSmiles(data.text) : readMol(data.text, data.name)
    self.postMessage({ id: data.id, structure })
  } catch (error) {
    self.postMessage({ id: data.id, error: error instanceof Error ? error.message : String(error) })
  }
}
