/** The panel at the right: simulation, readings, plots, structure, display, messages. */

import { Readings, Simulation } from './Simulation'
import { Plots } from './Plots'
import { DisplayPanel, MessagesPanel, SelectionPanel, StructurePanel } from './Structure'
import { drawer } from './context'

export function Panel() {
  return (
    <aside class={`panel${drawer.value ? ' shown' : ''}`}>
      <Simulation />
      <Readings />
      <Plots />
      <SelectionPanel />
      <StructurePanel />
      <DisplayPanel />
      <MessagesPanel />
    </aside>
  )
}
