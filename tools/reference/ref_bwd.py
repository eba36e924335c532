"""Hand-written backward in the torque form, no autograd: `python ref_bwd.py` checks it against autograd of ref_uma.Ref.

Needs: pip install fairchem-core==2.24.0
"""
import torch
from ref_uma import Ref, silu
torch.set_default_dtype(torch.float64)
sg=torch.sigmoid
def dsilu(v): s=sg(v); return s*(1+v*(1-s))
def gens(J,L):
    n=(L+1)**2; out=[torch.zeros(n,n) for _ in range(3)]
    for l in range(L+1):
        s=slice(l*l,(l+1)**2); Gy=torch.zeros(2*l+1,2*l+1)
        for m in range(1,l+1): Gy[l-m,l+m]=m; Gy[l+m,l-m]=-m
        Gx=J[l]@Gy@J[l]; Gz=Gx@Gy-Gy@Gx
        for k,g in enumerate((Gx,Gy,Gz)): out[k][s,s]=g
    return out
class Bwd:
    def __init__(s,R): s.R=R; s.W=R.W; s.G=gens(R.J,R.L)
    def ln_f(s,p,x):
        m=x.mean(-1,keepdim=True); v=x.var(-1,unbiased=False,keepdim=True); r=(v+1e-5)**-0.5; xh=(x-m)*r
        return xh*s.W[p+'.weight']+s.W[p+'.bias'],(xh,r)
    def ln_b(s,p,g,c):
        xh,r=c; h=g*s.W[p+'.weight']; return r*(h-h.mean(-1,keepdim=True)-xh*(h*xh).mean(-1,keepdim=True))
    def rad_f(s,p,x):
        R=s.R; a0=R.lin(p+'.net.0',x); a1,c1=s.ln_f(p+'.net.1',a0); h1=silu(a1); a3=R.lin(p+'.net.3',h1); a4,c4=s.ln_f(p+'.net.4',a3); h4=silu(a4)
        return R.lin(p+'.net.6',h4),(a1,c1,a4,c4)
    def rad_b(s,p,g,c,nb):
        a1,c1,a4,c4=c; W=s.W; g=(g@W[p+'.net.6.weight'])*dsilu(a4); g=s.ln_b(p+'.net.4',g,c4); g=(g@W[p+'.net.3.weight'])*dsilu(a1); g=s.ln_b(p+'.net.1',g,c1)
        return g@W[p+'.net.0.weight'][:,:nb]
    def norm_f(s,p,x):
        L=s.R.L; z=torch.cat([x[:,:1]-x[:,:1].mean(-1,keepdim=True),x[:,1:]],1)
        w=torch.tensor([1./((2*l+1)*(L+1)) for l,m in s.R.lm])[None,:,None]
        mu=((z**2)*w).sum(1,keepdim=True).mean(2,keepdim=True); r=(mu+1e-5)**-0.5; A=s.W[p+'.affine_weight'][s.R.l_of][None]
        y=z*r*A; y=torch.cat([y[:,:1]+s.W[p+'.affine_bias'],y[:,1:]],1); return y,(z,r,A,w)
    def norm_b(s,g,c):
        z,r,A,w=c; h=g*A; C=z.shape[2]; zb=r*h-(r**3/C)*(h*z).sum((1,2),keepdim=True)*w*z
        return torch.cat([zb[:,:1]-zb[:,:1].mean(-1,keepdim=True),zb[:,1:]],1)
    def conv_f(s,p,q,rad,C,extra,Hout,coef):
        R=s.R; L,M=R.L,R.M; E=q.shape[0]; n0=L+1; o=n0; ro=n0*C; out=[]
        x0=q[:,:n0].reshape(E,-1); x0=x0*rad[:,:ro] if rad is not None else x0
        y0=x0@R.moe(p+'.fc_m0',coef).T+s.W[p+'.fc_m0.bias']; g=y0[:,:extra]; out.append(y0[:,extra:].reshape(E,n0,Hout))
        for m in range(1,M+1):
            n=L-m+1; r=q[:,o:o+n].reshape(E,-1); i=q[:,o+n:o+2*n].reshape(E,-1); o+=2*n
            if rad is not None: rr=rad[:,ro:ro+n*C]; ro+=n*C; r=r*rr; i=i*rr
            W=R.moe(p+f'.so2_m_conv.{m-1}.fc',coef); Wa,Wb=W[:n*Hout],W[n*Hout:]
            out+=[(r@Wa.T-i@Wb.T).reshape(E,n,Hout),(i@Wa.T+r@Wb.T).reshape(E,n,Hout)]
        return torch.cat(out,1),g
    def conv_b(s,p,gy,gg,q,rad,C,Hout,coef):
        R=s.R; L,M=R.L,R.M; E=q.shape[0]; n0=L+1; o=n0; ro=n0*C; gq=[]; gr=[]
        g0=gy[:,:n0].reshape(E,-1); g0=torch.cat([gg,g0],1) if gg is not None else g0
        i0=g0@R.moe(p+'.fc_m0',coef); q0=q[:,:n0].reshape(E,-1)
        if rad is not None: gr.append(i0*q0); i0=i0*rad[:,:ro]
        gq.append(i0.reshape(E,n0,C))
        for m in range(1,M+1):
            n=L-m+1; gp=gy[:,o:o+n].reshape(E,-1); gm=gy[:,o+n:o+2*n].reshape(E,-1)
            r=q[:,o:o+n].reshape(E,-1); i=q[:,o+n:o+2*n].reshape(E,-1); o+=2*n
            W=R.moe(p+f'.so2_m_conv.{m-1}.fc',coef); Wa,Wb=W[:n*Hout],W[n*Hout:]
            rb=gp@Wa+gm@Wb; ib=gm@Wa-gp@Wb
            if rad is not None:
                rr=rad[:,ro:ro+n*C]; ro+=n*C; gr.append(rb*r+ib*i); rb=rb*rr; ib=ib*rr
            gq+=[rb.reshape(E,n,C),ib.reshape(E,n,C)]
        return torch.cat(gq,1),(torch.cat(gr,1) if rad is not None else None)
    def run(s,pos,cell,Z,src,tgt,offs,charge,spin,ds,include_self=False):
        R=s.R; W=s.W; cfg=R.cfg; L=R.L; C=cfg['sphere_channels']; H=cfg['hidden_channels']; N=len(Z); rc=cfg['cutoff']; nb=cfg['num_distance_basis']; E=len(src)
        vec=pos[src]-pos[tgt]+offs@cell; d=vec.norm(dim=1); nh=vec/d[:,None]; u=d/rc
        env=torch.where(u<1,1-21*u**5+35*u**6-15*u**7,torch.zeros_like(u)); denv=torch.where(u<1,-105*u**4*(1-u)**2,torch.zeros_like(u))/rc
        mu=torch.linspace(0,rc,nb); cg=-0.5/(2*(mu[1]-mu[0]))**2; ga=torch.exp(cg*(d[:,None]-mu)**2)
        xe=torch.cat([ga,W['backbone.source_embedding.weight'][Z[src]],W['backbone.target_embedding.weight'][Z[tgt]]],1)
        csd=silu(R.lin('backbone.mix_csd',torch.cat([W['backbone.charge_embedding.rand_emb.weight'][charge+100],W['backbone.spin_embedding.rand_emb.weight'][spin],W[f'backbone.dataset_embedding.dataset_emb_dict.{ds}.weight'][0]])))
        comp=W['backbone.composition_embedding.weight'][Z]; comp=comp.sum(0)/(N+1) if include_self else comp.mean(0)
        h=torch.cat([comp,csd])
        for k in (0,2,4): h=silu(R.lin(f'backbone.routing_mlp.{k}',h))
        coef=torch.softmax(h,0)+0.005
        D=R.wigner(vec)[:,R.order,:]; DT=D.transpose(1,2); ol=torch.tensor(R.order_l)
        # ---- forward, saving
        x=torch.zeros(N,(L+1)**2,C); x[:,0]=W['backbone.sphere_embedding.weight'][Z]+csd
        edr,edc=s.rad_f('backbone.edge_degree_embedding.rad_func',xe); edr3=edr.reshape(E,L+1,C)
        edm=DT[:,:,:L+1]@edr3; x=x.index_add(0,tgt,env[:,None,None]*edm/5)
        bal=[(list(cfg.get('charge_balanced_channels') or []),charge),(list(cfg.get('spin_balanced_channels') or []),spin-1)]
        S=[]
        for b in range(cfg['num_layers']):
            p=f'backbone.blocks.{b}'; q_=p+'.atom_wise'
            y,n1=s.norm_f(p+'.norm_1',x); y=torch.cat([y[:,:1]+csd,y[:,1:]],1)
            n=torch.cat([y[src],y[tgt]],2); q=D@n; rad,rcx=s.rad_f(p+'.edge_wise.so2_conv_1.rad_func',xe)
            v,g=s.conv_f(p+'.edge_wise.so2_conv_1',q,rad,2*C,L*H,H,coef); g3=sg(g).reshape(E,L,H)
            a=torch.cat([silu(v[:,:1]),v[:,1:]*g3[:,ol[1:]-1]],1); k,_=s.conv_f(p+'.edge_wise.so2_conv_2',a,None,H,0,C,coef)
            rk=DT@k; x1=x.index_add(0,tgt,env[:,None,None]*rk)
            y2,n2=s.norm_f(p+'.norm_2',x1); sl=y2[:,0]@W[q_+'.scalar_mlp.0.weight'].T+W[q_+'.scalar_mlp.0.bias']; gs=silu(sl); gt=sg(gs).reshape(N,L,H)
            W1=W[q_+'.so3_linear_1.weight'][R.l_of]; W2=W[q_+'.so3_linear_2.weight'][R.l_of]
            t=torch.einsum('nic,ioc->nio',y2,W1); t[:,0]+=W[q_+'.so3_linear_1.bias']
            z=torch.cat([silu(t[:,:1]),t[:,1:]*gt[:,R.l_of[1:]-1]],1); o=torch.einsum('nic,ioc->nio',z,W2); o[:,0]+=W[q_+'.so3_linear_2.bias']
            x=x1+o
            for ch,val in bal:
                if ch: x=x.clone(); x[:,0,ch]-=(x[:,0,ch].sum(0)-val)/N
            S.append((n1,n,q,rad,rcx,v,g,g3,a,k,rk,n2,y2,sl,gs,gt,t,W1,W2))
        y,nf=s.norm_f('backbone.norm',x); hp='output_heads.energyandforcehead.head.energy_block'
        hw=lambda i: W[f'{hp}.{i}.weights'][R.head_exp(ds)] if f'{hp}.{i}.weights' in W else W[f'{hp}.{i}.weight']
        b1=y[:,0]@hw(0).T+W[f'{hp}.0.bias']; b2=silu(b1)@hw(2).T+W[f'{hp}.2.bias']; e=(silu(b2)@hw(4).T+W[f'{hp}.4.bias']).sum()
        # ---- backward
        gb=hw(4).expand(N,-1)*dsilu(b2); gb=(gb@hw(2))*dsilu(b1); gy=torch.zeros_like(y); gy[:,0]=gb@hw(0)
        gx=s.norm_b(gy,nf); dd=torch.zeros(E); de=torch.zeros(E); gga=torch.zeros(E,nb); tau=torch.zeros(E,3)
        G=torch.stack(s.G)
        def torque(A,B): return torch.einsum('eic,kij,ejc->ek',A,G,B)
        for b in reversed(range(cfg['num_layers'])):
            p=f'backbone.blocks.{b}'; q_=p+'.atom_wise'
            n1,n,q,rad,rcx,v,g,g3,a,k,rk,n2,y2,sl,gs,gt,t,W1,W2=S[b]
            for ch,val in reversed(bal):
                if ch: gx=gx.clone(); gx[:,0,ch]-=gx[:,0,ch].mean(0)
            gz=torch.einsum('nio,ioc->nic',gx,W2)
            lt=R.l_of[1:]-1
            gtv=torch.zeros(N,L,H).index_add(1,lt,gz[:,1:]*t[:,1:]); ggs=(gtv*gt*(1-gt)).reshape(N,-1)*dsilu(sl)
            gt_=torch.cat([gz[:,:1]*dsilu(t[:,:1]),gz[:,1:]*gt[:,lt]],1); gy2=torch.einsum('nio,ioc->nic',gt_,W1); gy2[:,0]+=ggs@W[q_+'.scalar_mlp.0.weight']
            gx=gx+s.norm_b(gy2,n2)
            mub=gx[tgt]; mu_=env[:,None,None]*rk
            de+=(mub*rk).sum((1,2)); tau-=torque(mub,mu_); kb=env[:,None,None]*(D@mub)
            ga_,_=s.conv_b(p+'.edge_wise.so2_conv_2',kb,None,a,None,H,C,coef)
            le=ol[1:]-1; gv=torch.cat([ga_[:,:1]*dsilu(v[:,:1]),ga_[:,1:]*g3[:,le]],1); gg=torch.zeros(E,L,H).index_add(1,le,ga_[:,1:]*v[:,1:]); gg=(gg*g3*(1-g3)).reshape(E,-1)
            gq,gr=s.conv_b(p+'.edge_wise.so2_conv_1',gv,gg,q,rad,2*C,H,coef)
            gga+=s.rad_b(p+'.edge_wise.so2_conv_1.rad_func',gr,rcx,nb)
            nbar=DT@gq; tau+=torque(nbar,n)
            gyn=torch.zeros_like(gx).index_add(0,src,nbar[:,:,:C]).index_add(0,tgt,nbar[:,:,C:])
            gx=gx+s.norm_b(gyn,n1)
        mub=gx[tgt]/5; de+=(mub*edm).sum((1,2)); tau-=torque(mub,env[:,None,None]*edm)
        gga+=s.rad_b('backbone.edge_degree_embedding.rad_func',(env[:,None,None]*(D[:,:L+1]@mub)).reshape(E,-1),edc,nb)
        dd=de*denv+(gga*ga*2*cg*(d[:,None]-mu)).sum(1)
        gvec=dd[:,None]*nh+torch.cross(nh,tau,dim=1)/d[:,None]
        gpos=torch.zeros_like(pos).index_add(0,src,gvec).index_add(0,tgt,-gvec); vir=gvec.T@vec
        return e,gpos,(vir+vir.T)/2,(tau*nh).sum(1).abs().max()
if __name__=='__main__':
    from ase.build import bulk
    from ase.neighborlist import neighbor_list
    import os
    for p in [os.path.join(os.path.dirname(os.path.abspath(__file__)),'..','..','tests','data',f'nano-{n}.pt') for n in ('1p1','1p2','m')]:
        if not os.path.exists(p): continue
        ck=torch.load(p,map_location='cpu',weights_only=False); R=Ref(ck); inc=ck.model_config.get('model_id')=='UMA-S-1.2'
        a=bulk("NaCl","rocksalt",a=5.64,cubic=True); a.rattle(0.1,seed=1)
        pos=torch.tensor(a.positions).requires_grad_(True); cell=torch.tensor(a.cell.array).requires_grad_(True)
        i,j,S=neighbor_list('ijS',a,6.0); i,j,S=torch.tensor(i),torch.tensor(j),torch.tensor(S,dtype=torch.float64); Z=torch.tensor(a.numbers)
        e=R.energy_norm(pos,cell,Z,j,i,S,2,0,'omat',inc); gp,gc=torch.autograd.grad(e,[pos,cell])
        v1=gp.T@pos.detach(); v2=cell.detach().T@gc; vr=(v1+v1.T+v2+v2.T)/2
        with torch.no_grad(): e2,gpos,vir,tn=Bwd(R).run(pos.detach(),cell.detach(),Z,j,i,S,2,0,'omat',inc)
        print(p,'dE',abs(e-e2).item(),'dF',(gp-gpos).abs().max().item(),'Fmax',gp.abs().max().item(),'dV',(vir-vr).abs().max().item(),'tau.n',tn.item())
