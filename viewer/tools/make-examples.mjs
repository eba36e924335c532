// Writes src/examples/molecules.extxyz: conformers of openchemlib (MMFF94s) with a fixed seed, and
// water clusters. Run: node tools/make-examples.mjs
import { writeFileSync } from 'node:fs'
import OCL from 'openchemlib'

OCL.Resources.registerFromNodejs()

const molecules = [
  ['Water', 'O'],
  ['Ammonia', 'N'],
  ['Methane', 'C'],
  ['Formaldehyde', 'C=O'],
  ['Ethanol', 'CCO'],
  ['Acetic acid', 'CC(=O)O'],
  ['Benzene', 'c1ccccc1'],
  ['Glycine', 'NCC(=O)O'],
  ['Hydronium', '[OH3+]', { charge: 1 }],
  ['Acetate', 'CC(=O)[O-]', { charge: -1 }],
  ['Methyl radical', '[CH3]', { spin: 2 }],
  ['Alanine dipeptide', 'CC(=O)N[C@@H](C)C(=O)NC'],
  ['Aspirin', 'CC(=O)Oc1ccccc1C(=O)O'],
  ['Caffeine', 'Cn1cnc2c1c(=O)n(C)c(=O)n2C'],
  ['Ibuprofen', 'CC(C)Cc1ccc(cc1)C(C)C(=O)O'],
  ['Glucose', 'OC[C@H]1OC(O)[C@H](O)[C@@H](O)[C@@H]1O'],
  ['Dodecane', 'CCCCCCCCCCCC'],
  ['Cholesterol', 'C[C@H](CCCC(C)C)[C@H]1CC[C@@H]2[C@@]1(CC[C@H]3[C@H]2CC=C4[C@@]3(CC[C@@H](C4)O)C)C'],
]

const frames = molecules.map(([name, smiles, { charge = 0, spin = 0 } = {}]) => {
  const parsed = OCL.Molecule.fromSmiles(smiles)
  const made = new OCL.ConformerGenerator(7).getOneConformerAsMolecule(parsed)
  if (!made) throw new Error(`no conformer of ${name}`)
  try {
    new OCL.ForceFieldMMFF94(made, 'MMFF94s').minimise({ maxIts: 5000 })
  } catch (error) {
    console.warn(`${name}: kept as generated (${error})`)
  }
  const atoms = []
  for (let i = 0; i < made.getAllAtoms(); i++)
    atoms.push([made.getAtomLabel(i), made.getAtomX(i), -made.getAtomY(i), -made.getAtomZ(i)])
  return { name, charge, spin, atoms }
})

// Waters on a cubic grid of 3 Angstrom, the innermost first, each turned at random.
function waters(count, seed) {
  let state = seed
  const random = () => (state = (state * 48271) % 2147483647) / 2147483647
  const sites = []
  for (let x = -3; x <= 3; x++)
    for (let y = -3; y <= 3; y++) for (let z = -3; z <= 3; z++) sites.push([x + 0.02 * y, y + 0.013 * z, z])
  sites.sort((a, b) => Math.hypot(...a) - Math.hypot(...b))
  return sites.slice(0, count).flatMap((site) => {
    const [u, v, w] = [random(), 2 * Math.PI * random(), 2 * Math.PI * random()]
    // A uniform random rotation as a quaternion (Shoemake).
    const q = [Math.sqrt(1 - u) * Math.sin(v), Math.sqrt(1 - u) * Math.cos(v), Math.sqrt(u) * Math.sin(w), Math.sqrt(u) * Math.cos(w)]
    const turn = ([x, y, z]) => {
      const [a, b, c, d] = q
      const t = [2 * (b * z - c * y), 2 * (c * x - a * z), 2 * (a * y - b * x)]
      return [x + d * t[0] + b * t[2] - c * t[1], y + d * t[1] + c * t[0] - a * t[2], z + d * t[2] + a * t[1] - b * t[0]]
    }
    const half = (104.5 / 2) * (Math.PI / 180)
    const local = [['O', [0, 0, 0]], ['H', [0.9572 * Math.sin(half), 0.9572 * Math.cos(half), 0]], ['H', [-0.9572 * Math.sin(half), 0.9572 * Math.cos(half), 0]]]
    return local.map(([symbol, p]) => {
      const r = turn(p)
      return [symbol, 3 * site[0] + r[0], 3 * site[1] + r[1], 3 * site[2] + r[2]]
    })
  })
}
for (const count of [10, 64]) frames.push({ name: `${count} waters`, charge: 0, spin: 0, atoms: waters(count, 11 + count) })

const text = frames
  .map(({ name, charge, spin, atoms }) => {
    const centre = [1, 2, 3].map((k) => atoms.reduce((sum, a) => sum + a[k], 0) / atoms.length)
    const words = [`Properties=species:S:1:pos:R:3 name="${name}" charge=${charge}`, ...(spin ? [`spin=${spin}`] : [])]
    const rows = atoms.map(([s, ...p]) => `${s.padEnd(2)} ${p.map((x, k) => (x - centre[k]).toFixed(5).padStart(10)).join(' ')}`)
    return [atoms.length, words.join(' '), ...rows].join('\n')
  })
  .join('\n')
writeFileSync(new URL('../src/examples/molecules.extxyz', import.meta.url), text + '\n')
console.log(`${frames.length} molecules, ${text.length} bytes`)
