import { beforeAll, describe, expect, it } from 'vitest'
import { Resources } from 'openchemlib'
import { cellParameters } from '../src/chem/structure'
import { readCif, parseCif, symmetryOperation } from '../src/formats/cif'
import { detectFormat } from '../src/formats'
import { readMol, readSmiles } from '../src/formats/molecule'
import { readPdb } from '../src/formats/pdb'
import { readXyz, writeExtxyz, writeXyz } from '../src/formats/xyz'
import { findBonds } from '../src/chem/bonds'
import { at, norm, sub } from '../src/chem/geometry'

describe('xyz', () => {
  it('reads plain files, also with atomic numbers and tabs', () => {
    const s = readXyz('3\nwater\nO\t0 0 0\n1 0.96 0 0\nH -0.24 0.93 1e-3\n', 'x')
    expect([...s.numbers]).toEqual([8, 1, 1])
    expect(s.positions[8]).toBe(1e-3)
    expect(s.cell).toBeNull()
  })
  it('takes the last frame', () => {
    const s = readXyz('1\na\nH 0 0 0\n1\nb\nHe 1 2 3\n', 'x')
    expect([...s.numbers]).toEqual([2])
  })
  it('reads lattice, periodicity, charge, spin and momenta of extended files', () => {
    const s = readXyz(
      '1\nLattice="4 0 0 0 5 0 0 0 6" Properties=species:S:1:pos:R:3:momenta:R:3:tags:I:1 pbc="T F T" charge=-1 spin=2 task=omat\nO 1 2 3 16 0 0 7\n',
      'x',
    )
    expect([...s.cell!]).toEqual([4, 0, 0, 0, 5, 0, 0, 0, 6])
    expect(s.periodic).toEqual([true, false, true])
    expect([s.charge, s.spin, s.task]).toEqual([-1, 2, 'omat'])
    expect(s.velocities[0]).toBeCloseTo(16 / 15.999, 6)
  })
  it('writes what it reads', () => {
    const s = readXyz('2\nLattice="4 0 0 1 5 0 0 0 6" Properties=species:S:1:pos:R:3 charge=1\nNa 0.125 0 0\nCl 2 2.5 -3\n', 'x')
    const text = writeExtxyz({ structure: s, positions: s.positions, forces: new Float64Array(6), energy: -1.5 })
    const again = readXyz(text, 'x')
    expect(again.positions).toEqual(s.positions)
    expect(again.cell).toEqual(s.cell)
    expect([...again.numbers]).toEqual([11, 17])
    expect(again.charge).toBe(1)
    expect(text).toContain('energy=-1.5')
    expect([...readXyz(writeXyz({ structure: s, positions: s.positions }), 'x').numbers]).toEqual([11, 17])
  })
  it.each([
    ['', 'no frame'],
    ['two\n\n', 'line 1'],
    ['3\n\nH 0 0 0\n', 'ends before 3 atoms'],
    ['1\n\nQq 0 0 0\n', '“Qq” is no element'],
    ['1\n\nH 0 nan 0\n', 'line 3'],
    ['1\nLattice="1 2 3"\nH 0 0 0\n', 'nine numbers'],
    ['999999999\n\n', 'more than'],
  ])('says what is wrong with %j', (text, words) => {
    expect(() => readXyz(text, 'x')).toThrow(words)
  })
})

describe('pdb', () => {
  const atom = (name: string, x: number, element: string, alternate = ' '): string =>
    `ATOM      1 ${name}${alternate}ALA A   1    ${x.toFixed(3).padStart(8)}${'0.000'.padStart(8)}${'0.000'.padStart(8)}  1.00  0.00          ${element.padStart(2)}`
  it('reads elements, the cell and the first model only', () => {
    const s = readPdb(
      [
        'CRYST1   10.000   20.000   30.000  90.00  90.00  90.00 P 1           1',
        'MODEL 1',
        atom(' CA ', 1, 'C'),
        atom(' N  ', 2, ''),
        `HETATM    3 ZN    ZN A   2    ${'3.000'.padStart(8)}${'0.000'.padStart(8)}${'0.000'.padStart(8)}  1.00  0.00          ZN`,
        'ENDMDL',
        'MODEL 2',
        atom(' O  ', 3, 'O'),
      ].join('\n'),
      'x',
    )
    expect([...s.numbers]).toEqual([6, 7, 30])
    expect(cellParameters(s.cell!).lengths).toEqual([10, 20, 30])
  })
  it('takes one of alternate locations', () => {
    const s = readPdb([atom(' CB ', 1, 'C', 'A'), atom(' CB ', 2, 'C', 'B')].join('\n'), 'x')
    expect([...s.positions]).toEqual([1, 0, 0])
  })
  it('says where coordinates are missing', () => {
    expect(() => readPdb('ATOM      1  CA  ALA A   1      oops', 'x')).toThrow('PDB, line 1')
    expect(() => readPdb('HEADER', 'x')).toThrow('no ATOM')
  })
})

const NACL = `data_nacl
_cell_length_a 5.6400(2)
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90
_cell_angle_beta 90.000
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F m -3 m' # a comment
loop_
_space_group_symop_operation_xyz
'x, y, z'
'x,y+1/2,z+1/2'
'x+0.5,y,z+1/2'
'1/2+x,1/2+y,z'
'-x,-y,-z'
'-y,x,z'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na1 Na+ 0 0 0
Cl1 Cl- 0.5 0.5 0.5(1)
;a text field
over lines
;
Na+ ? ? ?
`

describe('cif', () => {
  it('applies symmetry and keeps special positions once', () => {
    const s = readCif(NACL, 'x')
    expect([...s.numbers].filter((z) => z === 11)).toHaveLength(4)
    expect([...s.numbers].filter((z) => z === 17)).toHaveLength(4)
    expect(s.cell![0]).toBeCloseTo(5.64)
    // Every sodium has six chlorines at a/2.
    const bonds = findBonds(s, s.positions)
    const of = [...bonds.first, ...bonds.second].filter((i) => i === 0)
    expect(of).toHaveLength(6)
  })
  it('reads the operations of all dictionaries', () => {
    expect(symmetryOperation('-x+1/2, y, z-0.25')).toEqual([-1, 0, 0, 0.5, 0, 1, 0, 0, 0, 0, 1, -0.25])
    expect(symmetryOperation('x-y,x,z+2/3')).toEqual([1, -1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2 / 3])
    expect(() => symmetryOperation('x,y')).toThrow('no symmetry operation')
    expect(() => symmetryOperation('x,y,foo')).toThrow('no symmetry operation')
  })
  it('keeps quotes inside of words and names with dots', () => {
    const [block] = parseCif(`data_a\n_x.y 'it's' "b" \n`.replace(' "b"', ''))
    expect(block!.get('_x_y')).toEqual(["it's"])
  })
  it.each([
    ['no atoms', 'no atoms'],
    ['data_x\nloop_\n_a\n_b\n1 2 3\n', 'loop of 2 columns has 3'],
    ["data_x\n_a 'open\n", 'quote has no end'],
    [NACL.replace(/loop_\n_space[\s\S]*?(?=loop_)/, ''), 'operations are not listed'],
  ])('says what is wrong', (text, words) => {
    expect(() => readCif(text.startsWith('data') ? text : 'data_x\n', 'x')).toThrow(text.startsWith('no') ? 'no atoms' : words)
  })
  it('reads mmCIF', () => {
    const s = readCif(
      'data_x\nloop_\n_atom_site.type_symbol\n_atom_site.Cartn_x\n_atom_site.Cartn_y\n_atom_site.Cartn_z\n_atom_site.pdbx_PDB_model_num\nC 1 2 3 1\nFE 4 5 6 1\nO 0 0 0 2\n',
      'x',
    )
    expect([...s.numbers]).toEqual([6, 26])
    expect([...s.positions]).toEqual([1, 2, 3, 4, 5, 6])
  })
})

describe('openchemlib', () => {
  beforeAll(() => Resources.registerFromNodejs())
  it('makes ethanol of CCO with sensible bonds', () => {
    const s = readSmiles('CCO')
    expect([...s.numbers].sort((a, b) => a - b)).toEqual([1, 1, 1, 1, 1, 1, 6, 6, 8])
    const bonds = findBonds(s, s.positions)
    expect(bonds.count).toBe(8)
    for (let k = 0; k < bonds.count; k++) {
      const d = norm(sub(at(s.positions, bonds.first[k]!), at(s.positions, bonds.second[k]!)))
      expect(d).toBeGreaterThan(0.9)
      expect(d).toBeLessThan(1.6)
    }
  })
  it('keeps charges, and the hand of a stereo centre', () => {
    expect(readSmiles('CC(=O)[O-]').charge).toBe(-1)
    expect(readSmiles('[OH3+]').numbers.length).toBe(4)
    const hand = (smiles: string): number => {
      const s = readSmiles(smiles)
      const by = (z: number): ReturnType<typeof at> => at(s.positions, [...s.numbers].indexOf(z))
      const c = by(6)
      const [a, b, d] = [9, 17, 35].map((z) => sub(by(z), c)) as unknown as [number[], number[], number[]]
      return Math.sign(
        a[0]! * (b[1]! * d[2]! - b[2]! * d[1]!) - a[1]! * (b[0]! * d[2]! - b[2]! * d[0]!) + a[2]! * (b[0]! * d[1]! - b[1]! * d[0]!),
      )
    }
    // "@": seen from H, F to Cl to Br is anticlockwise, and then their triple product is negative.
    expect(hand('[C@]([H])(F)(Cl)Br')).toBe(-hand('[C@@]([H])(F)(Cl)Br'))
    expect(hand('[C@]([H])(F)(Cl)Br')).toBe(-1)
  })
  it('reads a mol file as it stands and gives flat drawings a shape', () => {
    const mol = (z: string): string =>
      `water\n\n\n  3  2  0  0  0  0  0  0  0  0999 V2000\n    0.0000    0.0000    ${z} O   0  0\n    0.9600    0.0000    0.0000 H   0  0\n   -0.2400    0.9300    0.0000 H   0  0\n  1  2  1  0\n  1  3  1  0\nM  END\n`
    const solid = readMol(mol('0.1000'), 'x')
    expect(solid.name).toBe('water')
    expect([...solid.positions].map((x) => +x.toFixed(4) + 0)).toEqual([0, 0, 0.1, 0.96, 0, 0, -0.24, 0.93, 0])
    expect(readMol(mol('0.1000') + '$$$$\n', 'x').numbers.length).toBe(3)
    expect(readMol(mol('0.0000'), 'x').numbers.length).toBe(3)
  })
  it('says what is wrong', () => {
    expect(() => readSmiles('CC)Q')).toThrow('SMILES')
    expect(() => readMol('nonsense', 'x')).toThrow('MOL')
  })
})

describe('detection', () => {
  it.each([
    ['2\n\nH 0 0 0\nH 0 0 1', '', 'xyz'],
    ['data_x\n_atom_site_label', '', 'cif'],
    ['ATOM      1', '', 'pdb'],
    ['a\nb\n\n  1  0  0 V2000', '', 'mol'],
    ['c1ccccc1', '', 'smiles'],
    ['anything', 'a.PDB', 'pdb'],
    ['Dear all, this is no structure', '', undefined],
  ])('%j is %s', (text, name, format) => {
    expect(detectFormat(text, name)).toBe(format)
  })
})
